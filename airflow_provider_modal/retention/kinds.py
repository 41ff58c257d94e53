"""Which kinds of data does ``clean`` know?

A kind looks for what may go, and removes what was found. Between the two a person reads the list, so each
asks the database again before it removes anything: what came back to life meanwhile stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from airflow_provider_modal import names
from airflow_provider_modal.retention.found import Ask, Kind, Policy
from airflow_provider_modal.retention.logs import Logs
from airflow_provider_modal.retention.runs import GONE, RunFolders
from airflow_provider_modal.retention.venvs import Virtualenvs
from airflow_provider_modal.retention.versions import Versions
from airflow_provider_modal.volume.dag_lock import DagTreeLock
from airflow_provider_modal.volume.files import VolumeFiles


@dataclass(frozen=True)
class Environment:
    """What kinds work on."""

    files: VolumeFiles
    ask: Ask
    policy: Policy
    lock: DagTreeLock


def _xcom(env: Environment) -> Kind:
    # A value that the database refers to stays readable: `airflow db clean` is who forgets those of old runs.
    return RunFolders("xcom", env.files, env.ask, env.policy, root=names.XCOM_FOLDER, verdicts=(GONE,))


KINDS: Mapping[str, Callable[[Environment], Kind]] = MappingProxyType(
    {
        "logs": lambda env: Logs(env.files, env.ask, env.policy),
        "xcom": _xcom,
        "versions": lambda env: Versions(env.files, env.ask, env.policy, env.lock),
        "venvs": lambda env: Virtualenvs(env.files, env.policy),
    }
)
"""All kinds, by the name that a person gives; cleaned in this order."""

"""The two pieces of a scheduler run that need Airflow: each runs in a child of the zygote of its own.

Parsing is apart from scheduling because it forks: the child that schedules has the threads of Modal's client,
and a process that has threads must not fork. It also means that whatever user code does while it is parsed,
scheduling starts from an untouched copy of the zygote.
"""

from __future__ import annotations

import importlib
from typing import Any

from airflow_provider_modal import version_compat
from airflow_provider_modal.bundles import dag_modules

PARSE = "airflow_provider_modal.scheduler.run:parse"
SCHEDULE = "airflow_provider_modal.scheduler.run:main"


def parse(**arguments: Any) -> dict[str, Any]:
    """Parse DAG files; see the adapter's ``parse``."""
    result: dict[str, Any] = _adapter("_parsing").parse(**arguments)
    return result


def main(env: str, max_seconds: float) -> dict[str, Any]:
    """Schedule until nothing more can move.

    :param env: the environment, which marks the job's row as ours.
    :param max_seconds: when to end although there may be more to do.
    :return: ``job_id``, ``hostname``, ``loops``, ``queued``, ``events``, ``running``, ``deferred``,
        ``seconds`` and ``stopped``: see ``bounded.Reason``; ``signal`` if the child was told to end.
    """
    # Timetables and the like may be plugins.
    dag_modules.use_current()
    result: dict[str, Any] = _adapter().schedule(env, max_seconds)
    return result


def _adapter(part: str = "") -> Any:
    return importlib.import_module(version_compat.adapter("airflow_provider_modal.scheduler") + part)

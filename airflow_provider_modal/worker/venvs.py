"""Which packages does a dispatch need on top of the image, and how much time does it have for them?

The task's own ``requirements``, and those of the ``requirements.txt`` nearest to its DAG file. They are got
ready while the zygote warms up, before the task's time limit begins. Modal's limit for the call is fixed,
though: what the margin between the two can't spare is taken from the task's.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_modal import wire
from airflow_provider_modal.config import CALL_MARGIN_SECONDS
from airflow_provider_modal.venvs import activation, provision, requirements
from airflow_provider_modal.venvs.installer import StoppedError

if TYPE_CHECKING:
    from airflow_provider_modal.worker.limits import Cancellation

END_SECONDS = 120.0
"""What stopping a task and reporting it may take."""
SPARE_SECONDS = CALL_MARGIN_SECONDS - END_SECONDS
"""What may pass between a call's arrival and the task's start at no cost for the task."""
INSTALL_SECONDS = 900.0
"""What one installation may take at most."""


def wanted(call: wire.TaskCall, tree: Path | None) -> tuple[str, ...]:
    """Return the requirements of a call.

    :param tree: folder of the DAG version; None if the DAG comes from another bundle than the Volume's, whose
        files are not known yet.
    :raises ConfigError: they can't be had.
    """
    found = requirements.normalised(call.requirements, "executor_config['modal']['requirements']")
    if tree is not None:
        found += requirements.of_dag_file(tree, str(json.loads(call.workload).get("dag_rel_path") or ""))
    return tuple(sorted(set(found)))


def environment(
    venvs: provision.Venvs,
    wanted: tuple[str, ...],
    call: wire.TaskCall,
    started_at: float,
    cancelled: Cancellation,
) -> dict[str, str]:
    """Get the virtualenv ready and return the variables that tell of it.

    :param wanted: not empty.
    :param started_at: when the call arrived, seconds since the epoch.
    :raises ModalflowError: it can't be had; ``UnreachableError`` if another attempt may do better.
    """
    environ: Mapping[str, str] = {**os.environ, **call.env}
    seconds = min(INSTALL_SECONDS, SPARE_SECONDS + call.timeout / 2) - (time.time() - started_at)
    limits = provision.Limits(time.monotonic() + seconds, lambda: cancelled.stop is not None)
    try:
        return activation.environment(venvs.ready(wanted, environ, limits), environ)
    except StoppedError:
        return {}  # whoever stopped it is heard before the task starts


def time_limit(call: wire.TaskCall, started_at: float) -> float:
    """Return how many seconds the task may run that starts now."""
    late = max(time.time() - started_at - SPARE_SECONDS, 0.0)
    return max(call.timeout - late, 1.0)

"""What are the pieces of a task's log on the Volume called?

    logs/{log path}.{started}-{dispatch}.{sequence}

``log path`` is what Airflow rendered for the task instance's try and ends with ``attempt=N.log``; several
dispatches of one try (deferral, reschedule, re-delivery) and several containers each write segments of their
own, which are never written again. Sorted by name, the segments of a try are in the order of time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone

from airflow_provider_modal import names, wire
from airflow_provider_modal.volume.paths import safe_path, safe_segment

_SEGMENT = re.compile(
    r"(?P<log>.+\.log)\.(?P<started>\d{8}T\d{6}\.\d{6}Z)-(?P<dispatch>[^/]+)\.(?P<sequence>\d{6})"
)
_STARTED = "%Y%m%dT%H%M%S.%fZ"


@dataclass(frozen=True)
class Segment:
    """The name of one segment, taken apart.

    :param log: path of the whole log on the Volume, without what tells segments apart.
    :param started: when the dispatch's container took it, sortable text.
    """

    log: str
    started: str
    dispatch: str
    sequence: int


def task_log_folder(dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
    """Return the folder of a task instance's logs as Airflow's default template has it."""
    mapped = f"/map_index={map_index}" if map_index >= 0 else ""
    return f"dag_id={dag_id}/run_id={run_id}/task_id={task_id}{mapped}"


def default_log_path(key: wire.TaskKey) -> str:
    """Return what Airflow calls a try's log by default; our readers know no other."""
    folder = task_log_folder(key.dag_id, key.run_id, key.task_id, key.map_index)
    return f"{folder}/attempt={key.try_number}.log"


def log_folder_path(log_path: str) -> str:
    """Return where on the Volume a log that Airflow calls ``log_path`` is kept; each part is made safe."""
    return f"{names.LOGS_FOLDER}/{safe_path(*(part for part in log_path.split('/') if part))}"


def segment_prefix(log_path: str, started_at: float, dispatch: str) -> str:
    """Return what all segment names of one dispatch in one container begin with.

    :param log_path: as Airflow rendered it.
    :param started_at: seconds since the epoch.
    """
    started = datetime.fromtimestamp(started_at, timezone.utc).strftime(_STARTED)
    return f"{log_folder_path(log_path)}.{started}-{safe_segment(dispatch)}"


def segment_path(prefix: str, sequence: int) -> str:
    """Return the path of the ``sequence``-th segment, from 1."""
    return f"{prefix}.{sequence:06d}"


def parse(path: str) -> Segment | None:
    """Return the parts of a segment's path; None if it is not one."""
    match = _SEGMENT.fullmatch(path)
    if match is None:
        return None
    return Segment(match["log"], match["started"], match["dispatch"], int(match["sequence"]))

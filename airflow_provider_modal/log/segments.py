"""What are the pieces of a task's log on the Volume called?

    logs/{log}.{started}-{dispatch}.{sequence}[.end]

The log of a task's try is named by the try's coordinates and not by the path that Airflow renders: a custom
``[logging] log_filename_template`` moves the file on the container's local disk only, so that whoever knows
no more than the coordinates (the executor that writes a reason, the command line, retention) finds it too.
What is no task has the path that Airflow gave it.

Several dispatches of one try (deferral, reschedule, re-delivery) and several containers each write segments
of their own, which are never written again. Sorted by name, the segments of a try are in the order of time.
The last segment of each is marked: where the mark is missing, the container was lost, or still writes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone

from airflow_provider_modal import names, wire
from airflow_provider_modal.volume.paths import safe_path, safe_segment

TRIGGER = "trigger-"
"""What the dispatch of a segment begins with that a trigger wrote."""
CALLBACKS = "executor_callbacks"
"""Where Airflow puts the logs of callbacks that an executor runs."""
PARSING = "dag_processor"
"""Where the logs of DAG files are, by day and bundle."""
_SEGMENT = re.compile(
    r"(?P<log>.+)\.(?P<started>\d{8}T\d{6}\.\d{6}Z)-(?P<dispatch>[^/]+)\.(?P<sequence>\d{6,})(?P<end>\.end)?"
)
_STARTED = "%Y%m%dT%H%M%S.%fZ"
_END = ".end"


@dataclass(frozen=True)
class Segment:
    """The name of one segment, taken apart.

    :param log: path of the whole log on the Volume, without what tells segments apart.
    :param started: when the dispatch's container took it, sortable text.
    :param last: nothing comes after it from its writer.
    """

    log: str
    started: str
    dispatch: str
    sequence: int
    last: bool = False

    @property
    def writer(self) -> tuple[str, str]:
        """Which container's work on which dispatch this is, in the order of time."""
        return self.started, self.dispatch


def run_folder(dag_id: str, run_id: str) -> str:
    """Return the folder of a run's logs on the Volume."""
    return f"{names.LOGS_FOLDER}/{safe_path(f'dag_id={dag_id}', f'run_id={run_id}')}"


def task_folder(dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
    """Return the folder of a task instance's logs on the Volume."""
    mapped = (f"map_index={map_index}",) if map_index >= 0 else ()
    return f"{run_folder(dag_id, run_id)}/{safe_path(f'task_id={task_id}', *mapped)}"


def task_log(key: wire.TaskKey) -> str:
    """Return what the log of a try is called on the Volume."""
    folder = task_folder(key.dag_id, key.run_id, key.task_id, key.map_index)
    return f"{folder}/attempt={key.try_number}.log"


def callbacks_folder(dag_id: str, run_id: str) -> str:
    """Return the folder of the logs of a run's callbacks on the Volume."""
    return other_log(f"{CALLBACKS}/{dag_id}/{run_id}")


def other_log(log_path: str) -> str:
    """Return where on the Volume a log that is no task's is kept; each part of its path is made safe."""
    return f"{names.LOGS_FOLDER}/{safe_path(*(part for part in log_path.split('/') if part))}"


def segment_prefix(log: str, started_at: float, dispatch: str) -> str:
    """Return what all segment names of one dispatch in one container begin with.

    :param log: of ``task_log`` or ``other_log``.
    :param started_at: seconds since the epoch.
    """
    started = datetime.fromtimestamp(started_at, timezone.utc).strftime(_STARTED)
    return f"{log}.{started}-{safe_segment(dispatch)}"


def segment_path(prefix: str, sequence: int, *, last: bool = False) -> str:
    """Return the path of the ``sequence``-th segment, from 1."""
    return f"{prefix}.{sequence:06d}{_END if last else ''}"


def parse(path: str) -> Segment | None:
    """Return the parts of a segment's path; None if it is not one."""
    match = _SEGMENT.fullmatch(path)
    if match is None:
        return None
    return Segment(
        match["log"], match["started"], match["dispatch"], int(match["sequence"]), bool(match["end"])
    )

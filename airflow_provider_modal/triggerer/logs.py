"""How do the logs of triggers get to the Volume, beside those of the tasks that wait for them?

Airflow's triggerer writes one file per trigger, whose name begins with that of the task's own log:

    {log path of the task's try}.trigger.{microseconds since the epoch}.{job id}-{trigger id}.log

Each becomes segments of the task's log (see ``log.segments``), as if the trigger were one more dispatch of
that try: who reads the log finds what happened between deferral and resumption in its place.
"""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from types import TracebackType

from airflow_provider_modal.log.segments import segment_prefix
from airflow_provider_modal.log.shipper import LogShipper, Writer

log = logging.getLogger(__name__)

LOOK_SECONDS = 3.0
END_SECONDS = 20.0
_NAME = re.compile(r"(?P<log>.+)\.trigger\.(?P<started>\d+)\.(?P<writer>\d+-\d+)\.log")


def local_path(log_path: str, started: float, job_id: int, trigger_id: int) -> str:
    """Return the path, below Airflow's ``base_log_folder``, of a trigger's log.

    :param log_path: of the task's try.
    :param started: seconds since the epoch.
    """
    return f"{log_path}.trigger.{int(started * 1e6)}.{job_id}-{trigger_id}.log"


class TriggerLogs:
    """Ships the logs of triggers, from a thread, for the time of a ``with`` block.

    :param files: the Volume.
    :param folder: Airflow's ``base_log_folder``.
    """

    def __init__(self, files: Writer, folder: Path) -> None:
        self._files = files
        self._folder = folder
        self._shippers: dict[str, LogShipper] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trigger-logs", daemon=True)

    def __enter__(self) -> TriggerLogs:
        """Begin to look for logs."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ship the rest, within a bound."""
        self._end.set()
        self._thread.join(END_SECONDS)

    def _run(self) -> None:
        ending = False
        while not ending:
            ending = self._end.wait(LOOK_SECONDS)
            for path in self._folder.rglob("*.trigger.*.log"):
                try:
                    self._ship(path.relative_to(self._folder).as_posix(), ending)
                except Exception as error:
                    # The next look ships the same pieces.
                    log.warning("%s is not on the Volume yet: %s: %s", path, type(error).__name__, error)
        for name in self._shippers:
            (self._folder / name).unlink(missing_ok=True)

    def _ship(self, name: str, ending: bool) -> None:
        shipper = self._shippers.get(name)
        if shipper is None:
            match = _NAME.fullmatch(name)
            if match is None:
                return
            prefix = segment_prefix(match["log"], int(match["started"]) / 1e6, f"trigger-{match['writer']}")
            shipper = self._shippers[name] = LogShipper(self._files, self._folder / name, prefix)
        while shipper.ship(ending):
            pass

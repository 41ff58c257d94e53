"""How do the logs of triggers get to the Volume, beside those of the tasks that wait for them?

Airflow's triggerer writes one file per trigger. Ours has it begin its name with the try's coordinates:

    {log of the task's try}.trigger.{microseconds since the epoch}.{job id}-{trigger id}.log

Each becomes segments of the task's log (see ``log.segments``), as if the trigger were one more dispatch of
that try: who reads the log finds what happened between deferral and resumption in its place. The child that
runs the triggers says which of them have ended (``mark_finished``); their files go once they are shipped.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from pathlib import Path
from types import TracebackType

from airflow_provider_modal import wire
from airflow_provider_modal.log import segments
from airflow_provider_modal.log.shipper import LogShipper, Writer

log = logging.getLogger(__name__)

LOOK_SECONDS = 3.0
END_SECONDS = 20.0
UPLOAD_BYTES = 8 * 1024 * 1024
"""How much is uploaded, and in memory, at once."""
_NAME = re.compile(r"(?P<log>.+)\.trigger\.(?P<started>\d+)\.(?P<writer>\d+-\d+)\.log")
_FINISHED = ".finished"


def local_path(key: wire.TaskKey, started: float, job_id: int, trigger_id: int) -> str:
    """Return the path, below Airflow's ``base_log_folder``, of a trigger's log.

    :param key: of the task's try.
    :param started: seconds since the epoch.
    """
    return f"{segments.task_log(key)}.trigger.{int(started * 1e6)}.{job_id}-{trigger_id}.log"


def mark_finished(path: Path) -> None:
    """Say that nothing more is written to a trigger's log; harmless where there is none."""
    try:
        if path.exists():
            path.with_name(path.name + _FINISHED).touch()
    except OSError as error:
        # It is shipped all the same, and kept until the triggerer ends.
        log.warning("%s can't be marked: %s", path, error)


class TriggerLogs:
    """Ships the logs of triggers, from a thread, for the time of a ``with`` block.

    That is the life of all children of a triggerer: a file that could not be shipped when its child ended is
    shipped later, from where it was.

    :param files: the Volume.
    :param folder: Airflow's ``base_log_folder``.
    """

    def __init__(self, files: Writer, folder: Path) -> None:
        self._files = files
        self._folder = folder
        self._shippers: dict[Path, LogShipper] = {}
        self._childless = threading.Event()
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
        if left := len(self._shippers):
            log.warning("the logs of %d triggers are not on the Volume as a whole", left)

    def child_ended(self) -> None:
        """Say that the process is gone that wrote all the logs that are there."""
        for path in self._found():
            mark_finished(path)

    def _run(self) -> None:
        ending = False
        while not ending:
            ending = self._end.wait(LOOK_SECONDS)
            until = time.monotonic() + END_SECONDS
            while not self.look(ending) and ending and time.monotonic() < until:
                time.sleep(0.5)

    def look(self, ending: bool = False) -> bool:
        """Ship what is new, and remove what is complete; return whether all was shipped.

        :param ending: nobody writes any more.
        """
        try:
            # Before the files: what is marked is complete.
            finished = {path for path in self._found() if ending or self._is_finished(path)}
            for path in self._found():
                if path not in self._shippers:
                    self._shippers[path] = self._shipper(path)
            while self._upload(finished):
                pass
            for path in finished:
                if path in self._shippers and self._shippers[path].complete:
                    del self._shippers[path]
                    path.unlink(missing_ok=True)
                    path.with_name(path.name + _FINISHED).unlink(missing_ok=True)
            return not self._shippers or not ending
        except Exception as error:
            # The next look ships the same pieces.
            log.warning("the logs of triggers are not on the Volume yet: %s: %s", type(error).__name__, error)
            return False

    def _upload(self, finished: set[Path]) -> bool:
        """Upload of as many logs as fit into one upload what is new; return whether there was anything."""
        batch: dict[str, bytes] = {}
        taken: list[LogShipper] = []
        size = 0
        for path, shipper in self._shippers.items():
            if size >= UPLOAD_BYTES:
                break
            if pieces := shipper.take(path in finished):
                batch.update(pieces)
                taken.append(shipper)
                size += sum(map(len, pieces.values()))
        if batch:
            self._files.write_many(batch)
        for shipper in taken:
            shipper.taken()
        return bool(batch)

    def _found(self) -> list[Path]:
        return [path for path in self._folder.rglob("*.trigger.*.log") if _NAME.fullmatch(str(path))]

    def _is_finished(self, path: Path) -> bool:
        return path.with_name(path.name + _FINISHED).exists()

    def _shipper(self, path: Path) -> LogShipper:
        match = _NAME.fullmatch(path.relative_to(self._folder).as_posix())
        assert match is not None
        prefix = segments.segment_prefix(
            match["log"], int(match["started"]) / 1e6, f"{segments.TRIGGER}{match['writer']}"
        )
        return LogShipper(self._files, path, prefix)

"""How does a dispatch's log begin, get lines of ours, and end?

Airflow's supervisor writes a task's log to a local file; what happens to the task outside of its sight (which
container took it, why it was stopped) is added here, in the same form, because a person looks there first.
"""

from __future__ import annotations

import logging
from pathlib import Path

from airflow_provider_modal import wire
from airflow_provider_modal.log import segments, tail
from airflow_provider_modal.log.lines import line
from airflow_provider_modal.log.shipper import LogShipper, Writer
from airflow_provider_modal.volume.paths import below

log = logging.getLogger(__name__)

EVENT_WAITS = 2.0
"""Seconds that whoever waits for the task's end waits for the end of its log, too."""


class TaskLog:
    """The log of one dispatch in this container; everything is harmless when the workload has none.

    :param files: the Volume.
    :param folder: Airflow's ``base_log_folder``.
    :param log_path: path below it as Airflow rendered it; None for a workload without log.
    :param key: whose try's log it is; None for what is no task.
    :param started_at: when this container took the dispatch, seconds since the epoch.
    :param dispatch: id of the dispatch.
    """

    def __init__(
        self,
        files: Writer,
        folder: Path,
        log_path: str | None,
        key: wire.TaskKey | None,
        *,
        started_at: float,
        dispatch: str,
    ) -> None:
        self._local: Path | None = None
        self._shipper: LogShipper | None = None
        if not log_path:
            return
        try:
            self._local = below(folder, log_path)
        except ValueError as error:
            # Made of a template by the user; the task runs without.
            log.error("the task's log is not kept: %s; change [logging] log_filename_template", error)
            return
        on_volume = segments.other_log(log_path) if key is None else segments.task_log(key)
        prefix = segments.segment_prefix(on_volume, started_at, dispatch)
        self._shipper = LogShipper(files, self._local, prefix)

    def begin(self, event: str, **values: object) -> None:
        """Start with a line of ours and follow the file from now on."""
        if self._local is None or self._shipper is None:
            return
        # Left by another dispatch of the same try, whose segments are elsewhere.
        self._local.unlink(missing_ok=True)
        self.note("info", event, **values)
        self._shipper.start()

    def note(self, level: str, event: str, **values: object) -> None:
        """Add a line of ours; see ``lines.line``."""
        if self._local is None:
            return
        try:
            self._local.parent.mkdir(parents=True, exist_ok=True)
            # One write in append mode, as the supervisor does: lines don't mix.
            with self._local.open("ab", buffering=0) as file:
                file.write(line(level, event, **values))
        except OSError as error:
            log.warning("could not write to the task's log %s: %s", self._local, error)

    def last_lines(self) -> list[str]:
        """Return the last lines of what is on local disk, as text for people."""
        return tail.of_file(self._local)

    def end(self) -> None:
        """Have the rest shipped, and wait a moment for it."""
        if self._shipper is not None:
            self._shipper.request_finish()
            self._shipper.await_end(EVENT_WAITS)

    def close(self) -> None:
        """Wait until all is shipped, within the shipper's deadline; the local file goes if it is."""
        if self._shipper is not None and self._local is not None and self._shipper.finish():
            self._local.unlink(missing_ok=True)

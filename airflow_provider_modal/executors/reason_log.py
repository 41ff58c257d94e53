"""How does the reason of a failure that no worker saw get into the task's log?

People look there first. What a worker knows it writes itself; what only the executor knows (Modal refused the
task, its containers don't start, its last one was lost) becomes a segment of the task's log on the Volume.
Used on the dispatcher's loop only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from airflow_provider_modal import wire
from airflow_provider_modal.executors.submit_errors import backoff
from airflow_provider_modal.executors.threads import on_daemon_thread
from airflow_provider_modal.log import lines, segments

log = logging.getLogger(__name__)

ATTEMPTS = 5
MOST_PENDING = 1000
"""Reasons that wait for Modal; of more, the events of the task instances tell."""


class Writer(Protocol):
    """The part of ``volume.files.VolumeFiles`` that is needed."""

    def write_many(self, files: dict[str, bytes]) -> None:
        """Write several files in one upload."""


class ReasonLog:
    """Writes segments to the Volume, many in one upload.

    :param files: makes the interface to the Volume, on a thread that may block.
    """

    def __init__(self, files: Callable[[], Writer]) -> None:
        self._files = files
        self._pending: dict[str, bytes] = {}
        self.busy = False
        """Something is on its way to the Volume."""

    async def write(self, key: wire.TaskKey, dispatch: str, reason: str) -> None:
        """Add a reason to a try's log; return once everything that waits is written, or given up."""
        if len(self._pending) < MOST_PENDING:
            prefix = segments.segment_prefix(segments.task_log(key), time.time(), dispatch)
            self._pending[segments.segment_path(prefix, 1, last=True)] = lines.line(
                "error", reason, dispatch=dispatch, **{lines.INCOMPLETE: True}
            )
        if self.busy:
            return
        self.busy = True
        try:
            while self._pending:
                batch, self._pending = self._pending, {}
                await self._upload(batch)
        finally:
            self.busy = False

    async def _upload(self, batch: dict[str, bytes]) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await on_daemon_thread(lambda: self._files().write_many(batch), "modal-reasons")
                return
            except Exception as error:
                if attempt == ATTEMPTS:
                    log.warning(
                        "why %d tasks failed is not in their logs, only among their events: %s",
                        len(batch),
                        str(error) or type(error).__name__,
                    )
                    return
                await asyncio.sleep(backoff(attempt))

"""Reads what a container prints without ever making it wait: any amount, any line length, any bytes."""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import Callable

READ_BYTES = 65536
LINE_MAX = 65536
"""Longer lines are passed on in pieces."""
PARTIAL_AFTER = 0.3
"""Seconds after which an unfinished line (a progress bar, a prompt) is passed on as it is."""


class OutputPump:
    """Follows the reading end of a pipe on the running loop and passes lines, with their line ends, to
    `emit`.
    """

    def __init__(self, descriptor: int, emit: Callable[[str], None]) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._emit = emit
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""
        self._loop = asyncio.get_running_loop()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._open = True
        self._loop.add_reader(descriptor, self._read_once)

    def drain(self) -> None:
        """Pass on everything that has been printed so far."""
        while self._open and self._read_once():
            pass
        self._flush()

    def close(self) -> None:
        """Pass on the rest and stop following."""
        self.drain()
        self._shut()

    def _read_once(self) -> bool:
        try:
            data = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._feed(self._decoder.decode(b"", final=True))
            self._flush()
            self._shut()
            return False
        self._feed(self._decoder.decode(data))
        return True

    def _feed(self, text: str) -> None:
        lines = (self._pending + text).splitlines(keepends=True)
        self._pending = lines.pop() if lines and not lines[-1].endswith("\n") else ""
        for line in lines:
            self._emit(line)
        while len(self._pending) > LINE_MAX:
            self._emit(self._pending[:LINE_MAX])
            self._pending = self._pending[LINE_MAX:]
        if self._pending and self._flush_timer is None:
            self._flush_timer = self._loop.call_later(PARTIAL_AFTER, self._flush)

    def _flush(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if self._pending:
            self._emit(self._pending)
            self._pending = ""

    def _shut(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)

"""How does a task's log leave the container while the task runs?

A thread of the entry process follows the local file that Airflow's supervisor writes and uploads what is new,
every few seconds, as one more immutable segment. It reads a bounded piece at a time, so neither a log of
gigabytes nor an outage costs memory; what could not be uploaded is read again from the file. A task never
waits for it, except for a bounded moment at its end. The last segment's name says that it is the last.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from airflow_provider_modal.log.segments import segment_path

log = logging.getLogger(__name__)

INTERVAL = 3.0
"""Seconds between two looks at the file."""
FIRST_LOOK = 1.0
"""Seconds until the first: a person waits for it, but a short task's log shall be one segment."""
SEGMENT_BYTES = 1024 * 1024
SEGMENTS_PER_UPLOAD = 8
MAX_PAUSE = 30.0
"""Seconds between two attempts when uploads keep failing."""
FLUSH_DEADLINE = 20.0
"""Seconds that a task's end may wait for the rest of its log."""


class Writer(Protocol):
    """The part of ``volume.files.VolumeFiles`` that shipping needs."""

    def write_many(self, files: dict[str, bytes]) -> None:
        """Write several files in one upload."""


@dataclass(frozen=True)
class _Piece:
    """A range of the local file with its name; decided once, so that a repeated upload is the same."""

    path: str
    start: int
    end: int


class LogShipper:
    """Ships one dispatch's log.

    :param files: where segments go.
    :param local: the file that is being written; need not exist yet.
    :param prefix: what the segments' names begin with; see ``segments.segment_prefix``.
    :param interval: seconds between two looks at the file.
    :param segment_bytes: size above which a segment is cut.
    """

    def __init__(
        self,
        files: Writer,
        local: Path,
        prefix: str,
        *,
        interval: float = INTERVAL,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._files = files
        self._local = local
        self._prefix = prefix
        self._interval = interval
        self._segment_bytes = segment_bytes
        self._position = 0
        self._sequence = 0
        self._ended = False
        """The last piece has its name, and with it the mark that nothing follows."""
        self._pending: list[_Piece] = []
        self._ends: float | None = None
        self._finish = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-shipper", daemon=True)

    def start(self) -> None:
        """Begin to follow the file."""
        self._thread.start()

    def request_finish(self, deadline: float = FLUSH_DEADLINE) -> None:
        """Have the rest shipped now; return at once.

        :param deadline: seconds after which it is given up.
        """
        self._ends = time.monotonic() + deadline
        self._finish.set()

    def await_end(self, timeout: float) -> None:
        """Wait for the shipping to end after ``request_finish``, at most so many seconds."""
        self._thread.join(timeout)

    def finish(self, deadline: float = FLUSH_DEADLINE) -> bool:
        """Wait until the rest is shipped and return whether all of it is.

        :param deadline: seconds, unless ``request_finish`` has set one.
        """
        if self._ends is None:
            self.request_finish(deadline)
        assert self._ends is not None
        self.await_end(max(self._ends - time.monotonic(), 0))
        unshipped = self._size() - self._shipped()
        if unshipped > 0:
            log.warning("the last %d bytes of %s could not be written to the Volume", unshipped, self._local)
        return unshipped <= 0

    def _run(self) -> None:
        pause = min(self._interval, FIRST_LOOK)
        while True:
            finishing = self._finish.wait(pause)
            try:
                more = self.ship(finishing)
                pause = 0 if more else self._interval
            except Exception as error:
                # Whatever it is, the task must not notice; the next attempt uploads the same pieces.
                pause = min(max(pause, self._interval) * 2, MAX_PAUSE)
                shipped = self._shipped()
                log.warning("%s is not on the Volume yet beyond byte %d: %s", self._local, shipped, error)
                more = True
            if finishing:
                if not more or time.monotonic() >= (self._ends or 0):
                    return
                if pause:
                    time.sleep(0.2)

    def ship(self, finishing: bool) -> bool:
        """Upload one batch and return whether there is more.

        :param finishing: the file is complete, so that a last line without end counts.
        :raises Exception: what the upload raised; the next call uploads the same pieces.
        """
        if pieces := self.take(finishing):
            self._files.write_many(pieces)
            self.taken()
        if finishing:
            return self._sequence > 0 and not self._ended
        return self._size() - self._position >= self._segment_bytes

    def take(self, finishing: bool) -> dict[str, bytes]:
        """Return the segments to upload next, the same until ``taken``; for who uploads for many files.

        :param finishing: as for ``ship``.
        """
        if not self._pending:
            self._pending = self._cut(finishing)
        return {piece.path: self._read(piece) for piece in self._pending}

    def taken(self) -> None:
        """Note that the segments of the last ``take`` are on the Volume."""
        self._pending = []

    @property
    def complete(self) -> bool:
        """Whether all of a complete file is on the Volume."""
        return not self._pending and (self._ended or self._sequence == 0)

    def _cut(self, finishing: bool) -> list[_Piece]:
        """Name the next ranges of the file: whole lines, but for lines longer than a segment."""
        size = self._size()
        pieces: list[_Piece] = []
        while self._position < size and len(pieces) < SEGMENTS_PER_UPLOAD:
            end = min(self._position + self._segment_bytes, size)
            last = finishing and end == size
            if not last:
                lines = self._read(_Piece("", self._position, end)).rfind(b"\n") + 1
                if lines:
                    end = self._position + lines
                elif end - self._position < self._segment_bytes:
                    break  # a line that is still being written
            pieces.append(self._piece(end, last))
        if finishing and not pieces and self._sequence and not self._ended:
            pieces.append(self._piece(self._position, last=True))
        return pieces

    def _piece(self, end: int, last: bool) -> _Piece:
        """Name the range up to ``end``."""
        self._sequence += 1
        piece = _Piece(segment_path(self._prefix, self._sequence, last=last), self._position, end)
        self._position, self._ended = end, last
        return piece

    def _read(self, piece: _Piece) -> bytes:
        with self._local.open("rb") as file:
            file.seek(piece.start)
            return file.read(piece.end - piece.start)

    def _size(self) -> int:
        try:
            return self._local.stat().st_size
        except FileNotFoundError:
            return 0

    def _shipped(self) -> int:
        return self._pending[0].start if self._pending else self._position

"""What is on the Volume of the log of one try, and who wrote it?

Read in batches of a bounded size, so that a log of any length passes in bounded memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from airflow_provider_modal import wire
from airflow_provider_modal.log import segments
from airflow_provider_modal.log.segments import Segment
from airflow_provider_modal.volume.files import Entry

BATCH_BYTES = 8 * 1024 * 1024
"""How much is read at once, and kept in memory; one segment in any case."""
BATCH_SEGMENTS = 64
LONGEST_LINE = 4 * 1024 * 1024
"""Bytes; what is longer comes in pieces."""
MOST_SEGMENTS = 1000
"""How many segments the end of a log is read from at most: a task that runs for hours leaves thousands."""
_NUMBER = re.compile(r"attempt=(\d+)\.log")

ReadMany = Callable[[Sequence[str]], Mapping[str, bytes]]


class Files(Protocol):
    """The part of ``volume.files.VolumeFiles`` that reading needs."""

    def list(self, path: str, recursive: bool = False) -> list[Entry]:
        """Return what a folder holds; nothing if it does not exist."""

    def read_many(self, paths: Sequence[str]) -> Mapping[str, bytes]:
        """Return the content of several files."""


@dataclass(frozen=True)
class Piece:
    """One segment.

    :param path: on the Volume.
    :param size: bytes.
    """

    segment: Segment
    path: str
    size: int


@dataclass(frozen=True)
class Attempt:
    """A log, of one try of a task as a rule.

    :param log: what it is called on the Volume.
    :param pieces: in the order in which they were written.
    """

    log: str
    pieces: Sequence[Piece]

    def writers(self) -> list[Attempt]:
        """Return what each container wrote, by the time at which they began."""
        found: dict[tuple[str, str], list[Piece]] = {}
        for piece in self.pieces:
            found.setdefault(piece.segment.writer, []).append(piece)
        return [Attempt(self.log, pieces) for pieces in found.values()]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(piece.size for piece in self.pieces)

    @property
    def ended(self) -> bool:
        """Whether its (last) writer has said that this is all."""
        return bool(self.pieces) and self.pieces[-1].segment.last

    def end(self, most_bytes: int) -> Attempt:
        """Return the last of its pieces, of not more than so many bytes; the last one in any case."""
        first, size = len(self.pieces), 0
        least = max(first - MOST_SEGMENTS, 0)
        while first > least and (not size or size + self.pieces[first - 1].size <= most_bytes):
            first -= 1
            size += self.pieces[first].size
        return Attempt(self.log, self.pieces[first:])

    def lines(self, read_many: ReadMany) -> Iterator[str]:
        """Yield its lines as they were written, without line ends."""
        rest = b""
        writer = None
        for piece, content in self._contents(read_many):
            if rest and piece.segment.writer != writer:
                # The container that wrote it was lost in the middle of a line.
                yield _text(rest)
                rest = b""
            writer = piece.segment.writer
            *whole, rest = (rest + content).split(b"\n")
            yield from map(_text, whole)
            if len(rest) > LONGEST_LINE:
                yield _text(rest)
                rest = b""
        if rest:
            yield _text(rest)

    def _contents(self, read_many: ReadMany) -> Iterator[tuple[Piece, bytes]]:
        for batch in self._batches():
            contents = dict(read_many([piece.path for piece in batch if piece.size]))
            for piece in batch:
                yield piece, contents.pop(piece.path, b"")

    def _batches(self) -> Iterator[list[Piece]]:
        batch: list[Piece] = []
        size = 0
        for piece in self.pieces:
            if batch and (size + piece.size > BATCH_BYTES or len(batch) == BATCH_SEGMENTS):
                yield batch
                batch, size = [], 0
            batch.append(piece)
            size += piece.size
        if batch:
            yield batch


def find(files: Files, key: wire.TaskKey) -> Attempt:
    """Return what is on the Volume of a try's log; without pieces if there is nothing."""
    folder = segments.task_folder(key.dag_id, key.run_id, key.task_id, key.map_index)
    return in_folder(files, folder).get(key.try_number) or Attempt(segments.task_log(key), ())


def in_folder(files: Files, folder: str) -> dict[int, Attempt]:
    """Return the logs of a task instance's tries, by number.

    :param folder: of ``segments.task_folder``.
    """
    return {
        int(match[1]): attempt
        for attempt in _logs(files.list(folder))
        if (match := _NUMBER.fullmatch(attempt.log.rpartition("/")[2]))
    }


def others(files: Files, folder: str) -> list[Attempt]:
    """Return the logs below a folder that are no tasks', by name.

    :param folder: of ``segments.other_log``.
    """
    return sorted(_logs(files.list(folder, recursive=True)), key=lambda found: found.log)


def _logs(entries: Iterable[Entry]) -> list[Attempt]:
    """Return the logs among the files of a folder."""
    found: dict[str, list[Piece]] = {}
    for entry in entries:
        segment = segments.parse(entry.path)
        if segment is not None:
            found.setdefault(segment.log, []).append(Piece(segment, entry.path, entry.size))
    return [
        Attempt(log, sorted(pieces, key=lambda piece: (*piece.segment.writer, piece.segment.sequence)))
        for log, pieces in found.items()
    ]


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")

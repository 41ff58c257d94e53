"""What did a task write?

Reads the segments that ``shipper`` left on the Volume, from any container or from outside Modal, as text for
people: Airflow 3 writes its task logs as one JSON object per line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from airflow_provider_modal.errors import NotFoundError
from airflow_provider_modal.log import segments
from airflow_provider_modal.volume.files import Entry
from airflow_provider_modal.volume.paths import segment_text

MOST_SEGMENTS = 1000
"""How many segments the end of a log is read from at most: a task that runs for hours leaves thousands."""
_ATTEMPT = re.compile(r"attempt=(\d+)\.log")
_TASK = re.compile(r"task_id=(?P<task_id>[^/]+)/(?:map_index=(?P<map_index>\d+)/)?attempt=\d+\.log")
_SHOWN_ELSEWHERE = frozenset(
    ("timestamp", "level", "event", "logger", "error_detail", "exception", "filename", "lineno", "loc")
)
_SAME_ON_EVERY_LINE = frozenset(("ti_id", "dag_id", "run_id", "task_id", "try_number", "map_index"))
"""What Airflow binds to every line of a task's log: whose log this is, which the reader has asked for."""
_NOT_IN_TEXT = _SHOWN_ELSEWHERE | _SAME_ON_EVERY_LINE


class Files(Protocol):
    """The part of ``volume.files.VolumeFiles`` that reading needs."""

    def list(self, path: str, recursive: bool = False) -> list[Entry]:
        """Return what a folder holds; nothing if it does not exist."""

    def read_immutable(self, path: str) -> bytes:
        """Return the content of a file that never changes."""


class SideBySide(Protocol):
    """The part of ``volume.files.VolumeFiles`` that reading many segments at once needs."""

    def list(self, path: str, recursive: bool = False) -> list[Entry]:
        """Return what a folder holds; nothing if it does not exist."""

    def read_many(self, paths: Sequence[str]) -> Mapping[str, bytes]:
        """Return the content of several files."""


def tasks(files: Files, dag_id: str, run_id: str) -> list[tuple[str, int]]:
    """Return (task id, map index) of every task of a run that has a log, in the order of their first start.

    The map index is -1 for unmapped ones.
    """
    folder = _run_folder(dag_id, run_id)
    found: dict[tuple[str, int], str] = {}
    for entry in files.list(folder, recursive=True):
        segment = segments.parse(entry.path)
        match = _TASK.fullmatch(segment.log.removeprefix(f"{folder}/")) if segment else None
        if segment and match:
            task = segment_text(match["task_id"]), int(match["map_index"] or -1)
            found[task] = min(found.get(task, segment.started), segment.started)
    return sorted(found, key=lambda task: (found[task], task))


def attempts(files: Files, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> list[int]:
    """Return the numbers of the tries that have a log."""
    return sorted(_segments(files, _task_folder(dag_id, run_id, task_id, map_index)))


def read(
    files: Files,
    dag_id: str,
    run_id: str,
    task_id: str,
    map_index: int = -1,
    try_number: int | None = None,
) -> Iterator[str]:
    """Return the lines of a try's log as text, without line ends; of the last try by default.

    :raises NotFoundError: there is no such log.
    """
    by_try = _segments(files, _task_folder(dag_id, run_id, task_id, map_index))
    task = f"{task_id}[{map_index}]" if map_index >= 0 else task_id
    if not by_try:
        raise NotFoundError(f"no log of task {task} in run {run_id} of DAG {dag_id}")
    wanted = max(by_try) if try_number is None else try_number
    if wanted not in by_try:
        tries = ", ".join(map(str, sorted(by_try)))
        raise NotFoundError(
            f"no log of try {wanted} of task {task} in run {run_id} of DAG {dag_id}; there are tries {tries}"
        )
    paths = [entry.path for entry in by_try[wanted]]
    return (text for line in _lines(files.read_immutable, paths) for text in readable(line))


@dataclass(frozen=True)
class Tail:
    """The end of a try's log.

    :param folder: where it is on the Volume.
    :param lines: as they were written.
    :param left_out: bytes that come before them.
    """

    folder: str
    lines: list[str]
    left_out: int


def tail(
    files: SideBySide,
    dag_id: str,
    run_id: str,
    task_id: str,
    map_index: int = -1,
    try_number: int = 1,
    *,
    most_bytes: int,
) -> Tail | None:
    """Return the end of a try's log, of whole segments read side by side; None where there is no log.

    :param most_bytes: how much of it at most, besides ``MOST_SEGMENTS``; the last segment in any case.
    """
    folder = _task_folder(dag_id, run_id, task_id, map_index)
    entries = _segments(files, folder).get(try_number, [])
    if not entries:
        return None
    size, first = entries[-1].size, len(entries) - 1
    least = max(len(entries) - MOST_SEGMENTS, 0)
    while first > least and size + entries[first - 1].size <= most_bytes:
        first -= 1
        size += entries[first].size
    paths = [entry.path for entry in entries[first:]]
    lines = list(_lines(files.read_many(paths).__getitem__, paths))
    return Tail(folder, lines, sum(entry.size for entry in entries[:first]))


def readable(line: str) -> Iterator[str]:
    """Yield one line of an Airflow log as text for people: one line, more for an exception."""
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or "event" not in record:
        yield line
        return
    level = str(record.get("level", "info")).upper()
    extra = "".join(f" {k}={_value(v)}" for k, v in record.items() if k not in _NOT_IN_TEXT)
    first, *more = str(record["event"]).splitlines() or [""]
    yield f"[{record.get('timestamp', '')}] {level} - {first}{extra}"
    yield from more
    details = record.get("error_detail") or record.get("exception")
    if isinstance(details, list):
        for detail in details:
            yield from _traceback(detail)
    elif details:
        yield from str(details).splitlines()


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _traceback(detail: Any) -> Iterator[str]:
    """Yield an exception that structlog took apart, in Python's own form."""
    if not isinstance(detail, dict):
        yield str(detail)
        return
    if detail.get("frames"):
        yield "Traceback (most recent call last):"
        for frame in detail["frames"]:
            yield f'  File "{frame.get("filename")}", line {frame.get("lineno")}, in {frame.get("name")}'
    yield from f"{detail.get('exc_type')}: {detail.get('exc_value')}".splitlines()


def _run_folder(dag_id: str, run_id: str) -> str:
    return segments.log_folder_path(f"dag_id={dag_id}/run_id={run_id}")


def _task_folder(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    return segments.log_folder_path(segments.task_log_folder(dag_id, run_id, task_id, map_index))


def _segments(files: Files | SideBySide, folder: str) -> dict[int, list[Entry]]:
    """Return all segments in a task's folder by try, in the order in which they were written."""
    found: dict[int, list[Entry]] = {}
    for entry in files.list(folder):
        segment = segments.parse(entry.path)
        match = _ATTEMPT.fullmatch(segment.log.rpartition("/")[2]) if segment else None
        if match:
            found.setdefault(int(match[1]), []).append(entry)
    return {number: sorted(entries, key=lambda entry: entry.path) for number, entries in found.items()}


def _lines(read: Callable[[str], bytes], paths: list[str]) -> Iterator[str]:
    """Yield the lines of consecutive segments, one segment in memory at a time; a line may span several."""
    rest = b""
    writer = None
    for path in paths:
        segment = segments.parse(path)
        assert segment is not None
        if rest and (segment.started, segment.dispatch) != writer:
            # The container that wrote it was lost in the middle of a line.
            yield rest.decode("utf-8", "replace")
            rest = b""
        writer = (segment.started, segment.dispatch)
        *whole, rest = (rest + read(path)).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")

"""What did a task write?

Reads the segments that ``shipper`` left on the Volume, from any container or from outside Modal, as text for
people: Airflow 3 writes its task logs as one JSON object per line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from airflow_provider_modal.errors import NotFoundError
from airflow_provider_modal.log import attempt, segments
from airflow_provider_modal.log.attempt import Files
from airflow_provider_modal.log.lines import INCOMPLETE
from airflow_provider_modal.volume.paths import segment_text

_TASK = re.compile(r"task_id=(?P<task_id>[^/]+)/(?:map_index=(?P<map_index>\d+)/)?attempt=\d+\.log")
_SHOWN_ELSEWHERE = frozenset(
    ("timestamp", "level", "event", "logger", "error_detail", "exception", "filename", "lineno", "loc")
)
_SAME_ON_EVERY_LINE = frozenset(("ti_id", "dag_id", "run_id", "task_id", "try_number", "map_index"))
"""What Airflow binds to every line of a task's log: whose log this is, which the reader has asked for."""
_NOT_IN_TEXT = _SHOWN_ELSEWHERE | _SAME_ON_EVERY_LINE | {INCOMPLETE}


def tasks(files: Files, dag_id: str, run_id: str) -> list[tuple[str, int]]:
    """Return (task id, map index) of every task of a run that has a log, in the order of their first start.

    The map index is -1 for unmapped ones.
    """
    folder = segments.run_folder(dag_id, run_id)
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
    return sorted(attempt.in_folder(files, segments.task_folder(dag_id, run_id, task_id, map_index)))


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
    by_try = attempt.in_folder(files, segments.task_folder(dag_id, run_id, task_id, map_index))
    task = f"{task_id}[{map_index}]" if map_index >= 0 else task_id
    if not by_try:
        raise NotFoundError(f"no log of task {task} in run {run_id} of DAG {dag_id}")
    wanted = max(by_try) if try_number is None else try_number
    if wanted not in by_try:
        tries = ", ".join(map(str, sorted(by_try)))
        raise NotFoundError(
            f"no log of try {wanted} of task {task} in run {run_id} of DAG {dag_id}; there are tries {tries}"
        )
    return (text for line in by_try[wanted].lines(files.read_many) for text in readable(line))


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

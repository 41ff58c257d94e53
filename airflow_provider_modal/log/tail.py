"""What were a task's last words?

For the reason of a failure, where a task asks for it. Nothing here may make the failure worse: what can't be
read is left out.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from airflow_provider_modal import wire
from airflow_provider_modal.log import attempt, reader

log = logging.getLogger(__name__)

MOST_CHARACTERS = 8000
"""Airflow shows a reason in one field of a table."""
_MOST_BYTES = 256 * 1024
"""How much of a log's end is looked at."""


def with_tail(reason: str, lines: Iterable[str], count: int) -> str:
    """Return a reason with the last ``count`` lines of a log, or the reason alone if there are none."""
    last = "\n".join(deque(lines, maxlen=count))[-MOST_CHARACTERS:] if count > 0 else ""
    return f"{reason}\nThe last lines of its log:\n{last}" if last else reason


def of_file(path: Path | None) -> list[str]:
    """Return the last lines of an Airflow log on local disk as text for people."""
    if path is None:
        return []
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - _MOST_BYTES, 0))
            content = file.read()
    except OSError as error:
        log.warning("the last lines of the task's log are not known: %s", error)
        return []
    lines = content.decode("utf-8", "replace").splitlines()
    # The first one may have lost its beginning.
    return [text for line in lines[size > _MOST_BYTES :] for text in reader.readable(line)]


def of_volume(files: attempt.Files, key: wire.TaskKey) -> list[str]:
    """Return the last lines that a try left on the Volume, also by a container that is lost."""
    try:
        lines = attempt.find(files, key).end(_MOST_BYTES).lines(files.read_many)
        return [text for line in lines for text in reader.readable(line)]
    except Exception as error:
        log.warning("the last lines of the task's log are not known: %s", error)
        return []

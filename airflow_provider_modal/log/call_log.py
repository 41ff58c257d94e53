"""What did a function call print, according to Modal, that its task's log on the Volume doesn't have?

A worker prints its task's log as well, so that the last seconds of a container that was lost are with Modal.
The rest of what is there (Airflow's supervisor, Python's or Modal's own last words) is in no other place.
"""

from __future__ import annotations

import asyncio
import json
import re
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from airflow_provider_modal.modal_errors import translated

ENTRIES = 1000
"""How many of a call's last entries are read."""
REMEMBERED = 5000
"""How many of the last shipped lines are compared with what was printed."""
SAME_MOMENT = 0.02
"""Seconds that may lie between a line in the log and the same line as it was printed."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_PRINTED = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{6})?(?:Z|[+-]\d\d:\d\d)) "
    r"\[(?P<level>\w+)\s*\] (?P<text>.*)"
)
"""A line as Airflow's supervisor prints it to a console."""
_LOGGER = re.compile(r"(?:^|\s+)\[[\w.]+\](?: .*)?$")
"""What comes after the event there: the logger's name, and values."""


@dataclass(frozen=True)
class Line:
    """One line that a call printed.

    :param at: seconds since the epoch: when it was logged, or when Modal got it.
    :param text: without time and level, if it had them.
    :param level: None for what did not come from Airflow's logging.
    """

    at: float
    text: str
    level: str | None = None

    def as_log(self) -> str:
        """Return it in the form of Airflow 3's task logs."""
        at = datetime.fromtimestamp(self.at, timezone.utc).isoformat(timespec="microseconds")
        record = {"timestamp": at, "level": self.level or "info", "event": self.text, "logger": "modal"}
        return json.dumps(record, ensure_ascii=False)


def printed(call_id: str, client: Mapping[str, Any]) -> list[Line]:
    """Return the last lines that a function call printed; blocks for as long as Modal takes.

    :param client: the argument ``client`` for the SDK, or nothing.
    :raises ModalflowError: Modal does not answer, or does not know the call any more.
    """
    return asyncio.run(_printed(call_id, client))


async def _printed(call_id: str, client: Mapping[str, Any]) -> list[Line]:
    import modal

    pieces: list[tuple[float, str]] = []
    with translated(f"read the log of function call {call_id}"):
        call = modal.FunctionCall.from_id(call_id, **client)
        async for entry in call.logs.tail.aio(ENTRIES):
            pieces.append((entry.timestamp.timestamp(), entry.message))
    return list(parsed(pieces))


def parsed(pieces: Iterable[tuple[float, str]]) -> Iterator[Line]:
    """Yield the lines of what came in pieces, each with its time; a line may span several."""
    rest = ""
    for at, text in pieces:
        *whole, rest = (rest + text).split("\n")
        for line in whole:
            yield from _line(at, line)
    if rest:
        yield from _line(at, rest)


def _line(at: float, line: str) -> Iterator[Line]:
    line = _COLOURS.sub("", line).rstrip()
    if match := _PRINTED.fullmatch(line):
        yield Line(_seconds(match["time"]), match["text"], match["level"])
    elif line:
        yield Line(at, line)


class Shipped:
    """The last lines of a log, to tell what of a call's output is in it."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=REMEMBERED)
        self._forgotten = False

    def passing(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield the lines of the log, and remember the last of them."""
        for line in lines:
            self._forgotten = self._forgotten or len(self._lines) == REMEMBERED
            self._lines.append(line)
            yield line

    def missing(self, printed: Iterable[Line]) -> Iterator[Line]:
        """Yield those printed lines that are not in the log."""
        events = sorted(filter(None, map(_event, self._lines)))
        times = [at for at, _ in events]
        double = ""
        """The event that the last line was the beginning of, if the log has it."""
        for line in printed:
            if line.level is None:
                if _LOGGER.sub("", line.text) not in double:
                    yield line
                continue
            double = ""
            if self._forgotten and times and line.at < times[0]:
                continue
            for at, event in events[bisect_left(times, line.at - SAME_MOMENT) :]:
                if at > line.at + SAME_MOMENT:
                    break
                if _LOGGER.sub("", line.text).rstrip() == event.partition("\n")[0].rstrip():
                    double = event or "\n"
                    break
            if not double:
                yield line


def _event(line: str) -> tuple[float, str] | None:
    """Return when a line of an Airflow log was written, and its event; None for other lines."""
    try:
        record = json.loads(line)
        return _seconds(record["timestamp"]), str(record["event"])
    except (ValueError, KeyError, TypeError):
        return None


def call_of(line: str) -> str | None:
    """Return the function call that a line of ours names, as the first one of a log does."""
    try:
        call_id = json.loads(line)["function_call"]
    except (ValueError, KeyError, TypeError):
        return None
    return call_id if isinstance(call_id, str) else None


def _seconds(text: str) -> float:
    # Before 3.11 Python reads no "Z".
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()

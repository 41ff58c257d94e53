"""Why does no container take a waiting function call: does none start, or is there none to be had?

For a deployed App Modal starts containers again for ever, with growing pauses, and the calls that wait for
them go on waiting (https://modal.com/docs/guide/retries#container-crashes); nothing about such a call says
so. What tells is the function's log: the output of containers that never got to a call. Waiting for capacity,
a GPU for example, leaves nothing there.

What Modal itself writes into that log is documented nowhere. So its words only ever serve as evidence of a
failed start and as text for people: without evidence a call counts as waiting for capacity.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import modal

ENTRIES = 200
"""How many of the newest entries of a function's log are looked at."""
SAID_MOST = 500
"""How many characters of what a container said are told to people."""

_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Exit|Failure)\b(?::.*)?$")
"""The last line of a Python traceback."""
_MODALS_WORDS = re.compile(
    # Every container ends some day, most with exit code 0 because nobody needs them.
    r"^(?!.*exit (?:code|status) 0\b).*"
    r"(?:crash|fail|error|exit (?:code|status)|out of memory|killed|took longer|before it was ready)",
    re.IGNORECASE,
)


class LogEntry(Protocol):
    """The part of ``modal.types.LogEntry`` that is needed here."""

    @property
    def message(self) -> str:
        """A piece of output."""

    @property
    def timestamp(self) -> datetime:
        """When it was printed."""

    @property
    def source(self) -> str:
        """``stdout``, ``stderr``, or ``system`` for what Modal itself says."""

    @property
    def context_ids(self) -> list[str]:
        """Ids of the function call, the input and the container that it belongs to, as far as there are."""


@dataclass(frozen=True)
class Starts:
    """What Modal tells about the containers of a function, at one moment.

    :param backlog: calls that wait.
    :param containers: how many there are, also such as are just starting.
    :param entries: the newest of the function's log, oldest first.
    """

    backlog: int
    containers: int
    entries: tuple[LogEntry, ...] = ()

    def failure(self, since: float) -> str | None:
        """Return what the last container said that ended before it took a call; None if none is known to.

        Containers that took a call after that show that they do start: then the failure was a passing one.

        :param since: seconds since the epoch. Containers that are older may be of another deployment, or
            idle: what goes wrong in those is not their start.
        """
        calls = [entry for entry in self.entries if _id(entry, "fc-")]
        worked = {_id(entry, "ta-") for entry in calls}
        last_work = max((entry.timestamp for entry in calls), default=None)
        older = {_id(entry, "ta-") for entry in self.entries if entry.timestamp.timestamp() < since}
        found: LogEntry | None = None
        said = ""
        for entry in self.entries:
            container = _id(entry, "ta-")
            if container is None or container in worked or container in older:
                continue
            line = _failure(entry)
            if line is None:
                continue
            # A traceback's own last line says more than Modal's word on the same container.
            if found is None or entry.source != "system" or _id(found, "ta-") != container:
                found, said = entry, line
        if found is None or (last_work is not None and last_work > found.timestamp):
            return None
        return said[:SAID_MOST]

    def __str__(self) -> str:
        """Return the figures, for people."""
        return f"{self.backlog} calls wait and {self.containers} containers run"


async def look(function: modal.Function[Any, Any, Any], base: modal.Function[Any, Any, Any]) -> Starts:
    """Ask Modal about a function's containers.

    :param function: with the options of the waiting call.
    :param base: without them; its log holds that of all its variants.
    :raises Exception: Modal did not answer.
    """
    stats = await function.get_current_stats.aio()
    if function is not base and stats.num_total_runners:
        # They run or start: what the log says of failures may be about other variants' containers. Should
        # these fail, they are gone at another look.
        return Starts(stats.backlog, stats.num_total_runners)
    newest = await _newest(base.logs.tail.aio(ENTRIES))
    return Starts(stats.backlog, stats.num_total_runners, tuple(newest))


async def _newest(entries: AsyncIterator[LogEntry]) -> list[LogEntry]:
    return sorted([entry async for entry in entries], key=_time)


def _time(entry: LogEntry) -> datetime:
    return entry.timestamp if entry.timestamp.tzinfo else entry.timestamp.replace(tzinfo=timezone.utc)


def _id(entry: LogEntry, kind: str) -> str | None:
    return next((found for found in entry.context_ids if found.startswith(kind)), None)


def _failure(entry: LogEntry) -> str | None:
    """Return the line of an entry that tells of a failed start."""
    lines: Iterable[str] = (line.strip() for line in entry.message.splitlines())
    words = _MODALS_WORDS.search if entry.source == "system" else _EXCEPTION.match
    return next((line for line in reversed(list(lines)) if line and words(line)), None)

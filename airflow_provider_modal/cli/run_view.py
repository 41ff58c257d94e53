"""How do DAG runs look, at their end and while they run?

Works on what the control operations ``runs.show`` and ``runs.list`` answer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow_provider_modal.cli.output import brief_time, note, seconds, table
from airflow_provider_modal.control.client import ANSWER_SECONDS
from airflow_provider_modal.errors import ModalflowError, UnreachableError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

FINISHED = ("success", "failed")
"""Final states of a DAG run."""
UNSUCCESSFUL = ("failed", "upstream_failed")
POLL_SECONDS = 1.0
MOST_POLL_SECONDS = 10.0
"""Every question keeps a container and the database awake: the longer a run takes, the rarer they get."""
_LEAST_ANSWER_SECONDS = 5.0
PATIENCE_SECONDS = 120.0
"""For how long Modal may be away while a run is followed."""

_COLOURS = {
    "success": "green",
    "running": "bright_green",
    "failed": "red",
    "upstream_failed": "yellow",
    "up_for_retry": "yellow",
    "up_for_reschedule": "yellow",
    "queued": "bright_black",
    "scheduled": "bright_black",
    "deferred": "magenta",
    "skipped": "magenta",
}

_UNDER_WAY = ("running", "deferred")
"""States of a task whose time goes on."""
BAR_COLUMNS = 24

Run = Mapping[str, Any]


def task_name(task: Mapping[str, Any]) -> str:
    """Return the task's name with the map index of a mapped one: ``square[2]``."""
    return task["task_id"] if task["map_index"] < 0 else f"{task['task_id']}[{task['map_index']}]"


def view_runs(runs: Sequence[Run]) -> RenderableType:
    """Return a table of runs."""
    rows = (
        (
            run["dag_id"],
            run["run_id"],
            _state(run["state"]),
            run["type"],
            brief_time(run["start"] or run["queued_at"]),
            seconds(_between(run["start"], run["end"], running=run["state"] == "running")),
        )
        for run in runs
    )
    return table(["DAG", "run", "state", "type", "began", "took"], rows)


def view(run: Run) -> RenderableType:
    """Return a run with all its tasks and tries."""
    from rich.console import Group
    from rich.text import Text

    title = Text.assemble(
        f"{run['dag_id']}  {run['run_id']}  ",
        _state(run["state"]),
        f"  {seconds(_between(run['start'], run['end'], running=run['state'] == 'running'))}",
    )
    tries = [(task, attempt) for task in _in_time(run["tasks"]) for attempt in _tries(task)]
    span = _span(run, [attempt for _, attempt in tries])
    rows = [
        (
            task_name(task),
            _state(attempt["state"]),
            attempt["try_number"],
            _bar(attempt, span),
            seconds(_between(attempt["queued_at"], attempt["start"])),
            seconds(_between(attempt["start"], attempt["end"], running=attempt["state"] in _UNDER_WAY)),
            attempt.get("host"),
            attempt.get("reason"),
        )
        for task, attempt in tries
    ]
    columns: list[str] = ["task", "state", "try", "timeline", "queued", "ran", "container", "reason"]
    if not any(row[-1] for row in rows):
        columns = columns[:-1]
    return Group(title, table(columns, [row[: len(columns)] for row in rows]))


def pause(elapsed: float) -> float:
    """Return how many seconds to wait until the next question about a run that is followed for so long."""
    return min(max(POLL_SECONDS, elapsed / 20), MOST_POLL_SECONDS)


def follow(fetch: Callable[[float], Run], timeout: float | None) -> Run:
    """Show a run on stderr until it ends, and return it.

    On a terminal a table that is kept up to date, else a line per change.

    :param fetch: returns the run as it is now; given how many seconds it may take.
    :param timeout: seconds to wait at most.
    :raises ModalflowError: it has not ended in time.
    :raises UnreachableError: Modal or the database was away for longer than ``PATIENCE_SECONDS``.
    """
    began = answered = time.monotonic()
    deadline = float("inf") if timeout is None else began + timeout
    with _display() as show:
        while True:
            try:
                run = fetch(min(max(deadline - time.monotonic(), _LEAST_ANSWER_SECONDS), ANSWER_SECONDS))
            except UnreachableError as error:
                if time.monotonic() - answered > PATIENCE_SECONDS:
                    raise
                note(f"{error}; the run goes on, asking again")
            else:
                answered = time.monotonic()
                show(run)
                if run["state"] in FINISHED:
                    return run
            if time.monotonic() + POLL_SECONDS > deadline:
                raise ModalflowError(
                    f"the run has not ended within {timeout:g} s; it goes on without this command"
                )
            now = time.monotonic()
            time.sleep(max(min(pause(now - began), deadline - POLL_SECONDS - now), 0.0))


@contextmanager
def _display() -> Iterator[Callable[[Run], None]]:
    if not sys.stderr.isatty():
        yield _Lines().show
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True, refresh_per_second=4) as live:
        yield lambda run: live.update(view(run))


class _Lines:
    """One line per change of a state."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, ...]] = {}

    def show(self, run: Run) -> None:
        """Tell what changed since the last call."""
        self._tell(f"run {run['run_id']}", run["state"], ())
        for task in run["tasks"]:
            self._tell(task_name(task), task["state"], (task["try_number"],), task.get("reason"))

    def _tell(self, name: str, state: str | None, tries: tuple[int, ...], reason: str | None = None) -> None:
        if self._known.get(name) == (state, *tries) or state is None:
            return
        self._known[name] = (state, *tries)
        suffix = "".join(f" (try {number})" for number in tries if number > 1)
        because = f": {reason}" if reason else ""
        note(f"{datetime.now():%H:%M:%S} {name}: {state}{suffix}{because}")


def _state(state: str | None) -> Text:
    from rich.text import Text

    return Text(state or "-", style=_COLOURS.get(state or "", ""))


def _tries(task: Run) -> list[Run]:
    return [*(task.get("history") or []), task]


def _in_time(tasks: Sequence[Run]) -> list[Run]:
    """Return tasks as they began; those that have not come last, in the order they had."""

    def began(task: Run) -> str:
        return min((each["start"] for each in _tries(task) if each["start"]), default="~")

    return sorted(tasks, key=began)


def _span(run: Run, attempts: Sequence[Run]) -> tuple[datetime, datetime] | None:
    """Return from when until when the timeline goes; None while nothing has begun."""
    # Not since it was queued: a run may wait for hours before its first task.
    marks = [_time(each[key]) for each in (run, *attempts) for key in ("start", "end") if each[key]]
    if not marks:
        return None
    if run["state"] not in FINISHED:
        marks.append(datetime.now(timezone.utc))
    return min(marks), max(marks)


def _bar(attempt: Run, span: tuple[datetime, datetime] | None) -> Text:
    """Return when a try waited and ran, as a bar over the time of the whole run."""
    from rich.text import Text

    if span is None or not (attempt["start"] or attempt["queued_at"]):
        return Text()
    began, ended = span
    length = max((ended - began).total_seconds(), 0.001)

    def column(moment: datetime) -> int:
        share = (moment - began).total_seconds() / length
        return min(max(round(share * BAR_COLUMNS), 0), BAR_COLUMNS)

    start = _time(attempt["start"]) if attempt["start"] else None
    queued = _time(attempt["queued_at"]) if attempt["queued_at"] else None
    if attempt["end"]:
        end = _time(attempt["end"])
    else:
        end = ended if start is None or attempt["state"] in _UNDER_WAY else start
    first = column(start or end)
    waited = min(column(queued) if queued else first, first)
    # Whatever began is seen, however short it was.
    ran = 0 if start is None else max(column(end) - first, 1)
    if first + ran > BAR_COLUMNS:
        first, waited = BAR_COLUMNS - ran, min(waited, BAR_COLUMNS - ran)
    return Text.assemble(
        " " * waited,
        ("░" * (first - waited), "bright_black"),
        ("█" * ran, _COLOURS.get(attempt["state"] or "", "")),
    )


def _between(begin: str | None, end: str | None, *, running: bool = False) -> float | None:
    """Return the seconds from ``begin`` to ``end``; to now for what has no end yet and is ``running``."""
    if not begin or not (end or running):
        return None
    until = _time(end) if end else datetime.now(timezone.utc)
    return max((until - _time(begin)).total_seconds(), 0.0)


def _time(text: str) -> datetime:
    # Python 3.10 does not read "Z".
    return datetime.fromisoformat(text.replace("Z", "+00:00"))

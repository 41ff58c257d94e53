"""What became of the last scheduler runs? Kept in the state Dict, for the tick and for ``modalflow status``.

One key holds the last records, and only runs write it. They have one container, but for some moments after
a deployment, when a run of the former one may still be at work. A run opens its record before it takes the
wish, and a run that is killed leaves it open until the next one that gets the scheduler's lock closes it. So
whoever finds no wish and no open record knows that every wish so far was heard by a run that ended (see
``tick``).

All of this is a hint. Where it is missing or of another release, nothing is known of former runs, and a run
is due.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import names

if TYPE_CHECKING:
    import modal

log = logging.getLogger(__name__)

KEPT = 10
"""How many runs are remembered."""
PATIENT_FAILURES = 3
"""After so many failed runs in a row the schedule slows down."""
SLOWEST_SECONDS = 600.0

DONE = "done"
VANISHED = "vanished"
LOCKED = "locked"
"""Another run of the environment was at work."""
LOCKED_OUT = "locked out"
"""Another environment schedules on the database."""
NOT_READY = "not ready"
"""The database belongs to another environment, or its schema to another Airflow."""
_CHANGED_NOTHING = (LOCKED, LOCKED_OUT, NOT_READY)


@dataclass(frozen=True)
class Look:
    """When a run that ended well looked at the database, and what people could have changed since.

    :param at: by the database's clock, in seconds since the epoch; before the run's scheduling began.
    :param knobs: see ``due_script.KNOBS``.
    """

    at: float
    knobs: str


@dataclass(frozen=True)
class Record:
    """One run. Times are in seconds since the epoch.

    :param token: identifies it.
    :param began: when it began.
    :param reason: who asked for it.
    :param ended: when it ended; None while it is at work, or if nobody knows.
    :param outcome: as ``holder.run`` tells it; ``vanished`` for a run that ended without a word, None for one
        that is at work.
    :param message: why it did not do its work, or what failed.
    :param look: when it looked at the database, if it then did all that there was to do.
    """

    token: str
    began: float
    reason: str = ""
    ended: float | None = None
    outcome: str | None = None
    message: str | None = None
    look: Look | None = None

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Record:
        """Return a record as it was stored.

        :raises TypeError: it is of another release.
        """
        look = value.get("look")
        return cls(**{**value, "look": Look(**look) if look else None})


def read(state: modal.Dict) -> list[Record]:
    """Return the last runs, oldest first.

    :raises modal.exception.Error: Modal does not answer, or the environment is not deployed.
    """
    stored = state.get(names.RUNS_KEY) or []
    try:
        return [Record.from_dict(value) for value in stored]
    except (TypeError, AttributeError) as error:
        log.warning("what is known of former scheduler runs is of another release: %s", error)
        return []


def marker(records: Sequence[Record]) -> str:
    """Return what changes whenever a run begins or ends."""
    return ",".join(f"{record.token}/{record.outcome}" for record in records)


def is_open(records: Sequence[Record]) -> bool:
    """Return whether a run has not ended, as far as is known: it is at work, or dead."""
    return any(record.outcome is None for record in records)


def last_look(records: Sequence[Record]) -> Look | None:
    """Return the look of the last run that may have changed anything; None unless it did all there was."""

    def end(record: Record) -> float:
        return math.inf if record.outcome is None else record.ended or record.began

    worked = [record for record in records if record.outcome not in _CHANGED_NOTHING]
    return max(reversed(worked), key=end).look if worked else None


def failures(records: Sequence[Record]) -> int:
    """Return how many runs in a row have failed, the last one included."""
    count = 0
    for record in reversed(records):
        if record.outcome is None or record.outcome == LOCKED:
            continue
        if record.outcome == DONE:
            break
        count += 1
    return count


def slowed_until(records: Sequence[Record], interval: float) -> float | None:
    """Return before when the schedule starts no run, because too many failed; None if it goes on.

    :param interval: seconds between two ticks.
    """
    wait = delay(failures(records), interval)
    if wait is None:
        return None
    return wait + max(record.ended or record.began for record in records if record.outcome is not None)


def delay(failed: int, interval: float) -> float | None:
    """Return how long to wait after so many failures in a row; None if as always.

    :param interval: seconds between two attempts otherwise.
    """
    if failed < PATIENT_FAILURES:
        return None
    return min(interval * 2.0 ** (failed - PATIENT_FAILURES + 1), SLOWEST_SECONDS)


class Journal:
    """One run's own record.

    Nothing that goes wrong here keeps the run from its work: it is logged.

    :param state: the environment's state Dict.
    :param reason: who asked for the run.
    """

    def __init__(self, state: modal.Dict, reason: str) -> None:
        self._state = state
        self._record = Record(str(uuid.uuid4()), time.time(), reason)
        self._open: frozenset[str] = frozenset()
        self._dead: frozenset[str] = frozenset()

    def begin(self) -> None:
        """Note that the run begins. Before it takes the wish."""
        self._write()

    def has_lock(self) -> None:
        """Note that this run has the lock: whoever had not ended when it began is dead.

        Or waits for the lock as well: then it puts its record right when it ends.
        """
        if self._open:
            self._dead = self._open
            self._write()

    def end(self, outcome: str, message: str | None = None, look: Look | None = None) -> None:
        """Note how it ended."""
        self._record = replace(self._record, ended=time.time(), outcome=outcome, message=message, look=look)
        self._write()

    def _write(self) -> None:
        try:
            others = [record for record in read(self._state) if record.token != self._record.token]
            self._open = frozenset(record.token for record in others if record.outcome is None)
            records = [_closed(record) if record.token in self._dead else record for record in others]
            records = sorted([*records, self._record], key=lambda record: record.began)
            self._state.put(names.RUNS_KEY, [asdict(record) for record in records[-KEPT:]])
        except Exception as error:
            log.warning("this run is not on record: %s: %s", type(error).__name__, error)


def _closed(record: Record) -> Record:
    """Return a former run's record, closed if that run did not do it."""
    if record.outcome is not None:
        return record
    told = "it was killed, ran out of memory, or was stopped at its time limit"
    return replace(record, outcome=VANISHED, message=told)

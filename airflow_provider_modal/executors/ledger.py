"""Which dispatch is a task instance's current one, and when was the last sign of it?

The executor's memory of what is on its way. Used on the scheduler's thread only, so it needs no lock.
Times are seconds since the epoch, because they are compared with the database's.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from airflow_provider_modal.executors.function_options import FunctionOptions

REMEMBERED = 10_000
"""How many dispatches that are over are remembered, to tell what is heard of them later from foreign ones."""


@dataclass
class Flight:
    """One dispatch between its submission and its end.

    :param key: Airflow's key of the task instance's try.
    :param call_id: the function call, once Modal has told it.
    :param last_sign: when something last showed that the dispatch lives.
    :param question: a question about it (or its submission) waits for Modal's answer.
    :param doubtful: Modal may have two function calls of it, of which one runs.
    :param function: name of the function that is called, if it is known.
    :param options: what of the function the task wants otherwise.
    :param origin: Airflow's job id of the scheduler whose partition gets its end, if that is another one.
    :param since: when its waiting for a container began: the submission, or the transition to ``queued``.
    :param pause: seconds until it is asked about again although nothing changed; 0 for the usual interval.
    :param give_up: why it fails once its call is taken back; None if it is then dispatched again.
    :param moved_on: how many times running Airflow's database said that nobody waits for it any more.
    """

    dispatch: str
    key: Hashable
    last_sign: float
    call_id: str | None = None
    question: bool = False
    doubtful: bool = False
    function: str | None = None
    options: FunctionOptions = field(default_factory=FunctionOptions)
    origin: int | None = None
    since: float = field(default_factory=time.time)
    pause: float = 0.0
    give_up: str | None = None
    moved_on: int = 0


class Ledger:
    """All flights of one executor."""

    def __init__(self) -> None:
        self._by_dispatch: dict[str, Flight] = {}
        self._by_key: dict[Hashable, Flight] = {}
        self._former: OrderedDict[str, Literal["late_events", "repeated_events"]] = OrderedDict()
        self.replaced = 0
        """Flights that another dispatch of the same key took over from."""

    def __len__(self) -> int:
        return len(self._by_dispatch)

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._by_dispatch.values()))

    def open(self, flight: Flight) -> None:
        """Make ``flight`` its key's current one; what is heard of a former one is foreign from now on."""
        former = self._by_key.get(flight.key)
        if former is not None and former.dispatch != flight.dispatch:
            del self._by_dispatch[former.dispatch]
            self._remember(former.dispatch, "late_events")
            self.replaced += 1
        self._by_key[flight.key] = flight
        self._by_dispatch[flight.dispatch] = flight

    def current(self, dispatch: str) -> Flight | None:
        """Return the flight of this dispatch, or None when it is over or not its key's current one."""
        return self._by_dispatch.get(dispatch)

    def of_key(self, key: Hashable) -> Flight | None:
        """Return the current flight of a task instance's try."""
        return self._by_key.get(key)

    def close(self, key: Hashable, *, ended: bool = False) -> Flight | None:
        """Forget the current flight of ``key`` and return it.

        :param ended: its end is known; otherwise nobody waits for that any more.
        """
        flight = self._by_key.pop(key, None)
        if flight is not None:
            del self._by_dispatch[flight.dispatch]
            self._remember(flight.dispatch, "repeated_events" if ended else "late_events")
        return flight

    def dropped_as(self, dispatch: str) -> Literal["late_events", "repeated_events", "foreign_events"]:
        """Return as what the end of a dispatch counts that is no flight (any more); see ``counters``."""
        return self._former.get(dispatch, "foreign_events")

    def _remember(self, dispatch: str, kind: Literal["late_events", "repeated_events"]) -> None:
        self._former[dispatch] = kind
        self._former.move_to_end(dispatch)
        if len(self._former) > REMEMBERED:
            self._former.popitem(last=False)

    def waiting(self) -> int:
        """Return how many flights wait for an answer of Modal: submissions and questions."""
        return sum(flight.question for flight in self._by_dispatch.values())

    def silent(self, now: float, after: float) -> list[Flight]:
        """Return the flights without a sign for ``after`` seconds that are not being asked about, first the
        one that is overdue most, measured by its own interval."""

        def overdue(flight: Flight) -> float:
            return (now - flight.last_sign) / max(after, flight.pause)

        silent = [
            flight for flight in self._by_dispatch.values() if not flight.question and overdue(flight) > 1
        ]
        return sorted(silent, key=overdue, reverse=True)

    def touch(self, keys: Iterable[Hashable], now: float) -> None:
        """Note a sign of the current flights of ``keys``."""
        for key in keys:
            flight = self._by_key.get(key)
            if flight is not None:
                flight.last_sign = now
                flight.pause = 0.0
                flight.moved_on = 0

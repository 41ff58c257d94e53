"""Which dispatch is a task instance's current one, and when was the last sign of it?

The executor's memory of what is on its way. Used on the scheduler's thread only, so it needs no lock.
Times are seconds since the epoch, because they are compared with the database's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass


@dataclass
class Flight:
    """One dispatch between its submission and its end.

    :param key: Airflow's key of the task instance's try.
    :param call_id: the function call, once Modal has told it.
    :param last_sign: when something last showed that the dispatch lives.
    :param question: a question about it (or its submission) waits for Modal's answer.
    :param doubtful: Modal may have two function calls of it, of which one runs.
    """

    dispatch: str
    key: Hashable
    last_sign: float
    call_id: str | None = None
    question: bool = False
    doubtful: bool = False


class Ledger:
    """All flights of one executor."""

    def __init__(self) -> None:
        self._by_dispatch: dict[str, Flight] = {}
        self._by_key: dict[Hashable, Flight] = {}
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
            self.replaced += 1
        self._by_key[flight.key] = flight
        self._by_dispatch[flight.dispatch] = flight

    def current(self, dispatch: str) -> Flight | None:
        """Return the flight of this dispatch, or None when it is over or not its key's current one."""
        return self._by_dispatch.get(dispatch)

    def of_key(self, key: Hashable) -> Flight | None:
        """Return the current flight of a task instance's try."""
        return self._by_key.get(key)

    def close(self, key: Hashable) -> Flight | None:
        """Forget the current flight of ``key`` and return it."""
        flight = self._by_key.pop(key, None)
        if flight is not None:
            del self._by_dispatch[flight.dispatch]
        return flight

    def waiting(self) -> int:
        """Return how many flights wait for an answer of Modal: submissions and questions."""
        return sum(flight.question for flight in self._by_dispatch.values())

    def silent(self, now: float, after: float) -> list[Flight]:
        """Return the flights without a sign for ``after`` seconds that are not being asked about."""
        return [
            flight
            for flight in self._by_dispatch.values()
            if not flight.question and now - flight.last_sign > after
        ]

    def touch(self, keys: Iterable[Hashable], now: float) -> None:
        """Note a sign of the current flights of ``keys``."""
        for key in keys:
            flight = self._by_key.get(key)
            if flight is not None:
                flight.last_sign = now

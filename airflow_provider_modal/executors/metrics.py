"""How well does the executor do, in Airflow's own metrics?

    modal_executor.submit_duration            timer    from the executor's order until Modal has the call
    modal_executor.submit_failures.{class}    counter  attempts that failed, by the SDK's class of error
    modal_executor.events_per_drain           gauge    reports of the last scheduler loop that had any
    modal_executor.in_flight                  gauge    dispatches between their submission and their end
    modal_executor.slot_drift                 gauge    slots in use here, less those in the database
    modal_executor.{name}                     counter  what ``counters`` names: dropped events by kind (late,
                                                       repeated, foreign, malformed), silent_checks, ...

What happens anywhere in the executor is counted in memory; the scheduler's loop sends what has changed, so
a loop in which nothing happened sends nothing, however many tasks run.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

log = logging.getLogger(__name__)

PREFIX = "modal_executor"
MOST_TIMINGS = 1000
"""Submissions whose duration is kept between two loops; of more, the others are not told."""


class Stats(Protocol):
    """The part of Airflow's metrics that is needed; a module or a class, by Airflow's version."""

    def incr(self, stat: str, count: int = 1, *, tags: dict[str, Any] | None = None) -> None:
        """Add to a counter."""

    def gauge(self, stat: str, value: float, *, tags: dict[str, Any] | None = None) -> None:
        """Set a gauge."""

    def timing(self, stat: str, dt: float, *, tags: dict[str, Any] | None = None) -> None:
        """Add a duration, in milliseconds."""


class Metrics:
    """What one executor has to tell; counting is safe from any thread.

    :param tags: sent with everything.
    """

    def __init__(self, tags: dict[str, str] | None = None) -> None:
        self._tags = tags or None
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._totals: dict[str, int] = {}
        self._gauges: dict[str, float] = {}
        self._timings: list[float] = []

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name] += amount

    def failed(self, error: BaseException) -> None:
        """Count a failed attempt to submit."""
        self.count(f"submit_failures.{type(error).__name__}")

    def submitted(self, seconds: float) -> None:
        """Note how long a submission took."""
        with self._lock:
            if len(self._timings) < MOST_TIMINGS:
                self._timings.append(seconds)

    def totals(self, totals: Mapping[Any, int]) -> None:
        """Tell counters that somebody else keeps, by their totals so far; on the scheduler's thread only."""
        for name, total in totals.items():
            grown = total - self._totals.get(name, 0)
            if grown > 0:
                self._totals[name] = total
                self.count(name, grown)

    def gauge(self, name: str, value: float) -> None:
        """Set a gauge."""
        with self._lock:
            self._gauges[name] = value

    def send(self) -> None:
        """Send what has changed since the last time; never raises."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            gauges, self._gauges = self._gauges, {}
            timings, self._timings = self._timings, []
        if not (counts or gauges or timings):
            return
        try:
            stats = airflow_stats()
            for name, amount in counts.items():
                stats.incr(_name(name), amount, tags=self._tags)
            for name, value in gauges.items():
                stats.gauge(_name(name), value, tags=self._tags)
            for seconds in timings:
                stats.timing(_name("submit_duration"), seconds * 1000, tags=self._tags)
        except Exception:
            # Metrics that can't be sent are no reason to stop scheduling.
            log.exception("metrics of the executor could not be sent")


def airflow_stats() -> Stats:
    """Return what Airflow's own executors send their metrics with."""
    from airflow.executors import base_executor

    # A module of functions since 3.3, a class before.
    stats: Stats = getattr(base_executor, "stats", None) or base_executor.Stats
    return stats


def _name(name: str) -> str:
    """Return a metric's full name, of characters that every backend takes."""
    return f"{PREFIX}.{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}"

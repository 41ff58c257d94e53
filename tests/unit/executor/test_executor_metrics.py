from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_modal.executors import metrics
from airflow_provider_modal.executors.metrics import Metrics
from airflow_provider_modal.executors.slots import SlotDrift
from tests.support.recorded_executor import key


class Backend:
    """A backend of Airflow's metrics that keeps what it gets."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def incr(self, stat: str, count: int = 1, rate: float = 1, *, tags: Any = None) -> None:
        self.sent.append(("incr", stat, count, tags))

    def gauge(
        self, stat: str, value: float, rate: float = 1, delta: bool = False, *, tags: Any = None
    ) -> None:
        self.sent.append(("gauge", stat, value, tags))

    def timing(self, stat: str, dt: float, *, tags: Any = None) -> None:
        self.sent.append(("timing", stat, dt, tags))


@pytest.fixture
def backend() -> Iterator[Backend]:
    """What Airflow's own metrics go to."""
    stats: Any = metrics.airflow_stats()
    backend = Backend()
    stats.initialize(factory=lambda: backend, export_legacy_names=True)
    yield backend
    from airflow._shared.observability.metrics.base_stats_logger import NoStatsLogger

    stats.initialize(factory=NoStatsLogger, export_legacy_names=True)


def test_metrics_go_where_airflows_own_go(backend: Backend) -> None:
    own = Metrics({"team_name": "blue"})
    own.count("redispatches")
    own.count("redispatches", 2)
    own.gauge("slot_drift", -1)
    own.submitted(0.25)
    own.failed(ValueError("x"))
    own.send()
    tags = {"team_name": "blue"}
    assert sorted(backend.sent) == [
        ("gauge", "modal_executor.slot_drift", -1, tags),
        ("incr", "modal_executor.redispatches", 3, tags),
        ("incr", "modal_executor.submit_failures.ValueError", 1, tags),
        ("timing", "modal_executor.submit_duration", 250.0, tags),
    ]


def test_only_what_has_changed_is_sent(backend: Backend) -> None:
    own = Metrics()
    totals = Counter({"late_events": 2})
    own.totals(totals)
    own.send()
    own.totals(totals)
    own.send()
    totals["late_events"] += 1
    own.totals(totals)
    own.send()
    assert [(name, count) for _, name, count, _ in backend.sent] == [
        ("modal_executor.late_events", 2),
        ("modal_executor.late_events", 1),
    ]


def test_memory_is_bounded_and_a_broken_backend_stops_nothing(backend: Backend) -> None:
    own = Metrics()
    for _ in range(metrics.MOST_TIMINGS + 10):
        own.submitted(1.0)
    own.send()
    assert len(backend.sent) == metrics.MOST_TIMINGS

    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    backend.incr = broken  # type: ignore[method-assign]
    own.count("redispatches")
    own.send()


def test_slots_are_not_measured_in_a_process_without_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def refused(thread: threading.Thread) -> None:
        started.append(thread.name)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    drift = SlotDrift(7, lambda: [key()], Metrics(), every=-1.0)
    for _ in range(2):
        drift.look()
    assert started == ["modal-slots"] * 2

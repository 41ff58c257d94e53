"""Who is asked about, when many give no sign, and what ends a call that Airflow no longer waits for?"""

from __future__ import annotations

import time
from collections import Counter
from types import SimpleNamespace

import pytest

from airflow_provider_modal.executors import database, outcomes, reports, silence
from airflow_provider_modal.executors.ledger import Flight, Ledger
from airflow_provider_modal.executors.silence import Silence
from tests.support.recorded_executor import Executor, RecordedDispatcher, key, queued, workload

AFTER = 60.0
PAUSE = AFTER / 4
"""Seconds between two looks."""


def test_what_modal_is_asked_does_not_grow_with_what_waits_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "live", lambda seconds: {})
    now = time.time()
    monkeypatch.setattr(silence, "time", SimpleNamespace(time=lambda: now))
    ledger, dispatcher = Ledger(), RecordedDispatcher()
    watch = Silence(ledger, dispatcher, 7, AFTER, Counter(), forget=lambda flight: None)
    asked: Counter[str] = Counter()
    flights = 3000
    for number in range(flights):
        ledger.open(Flight(f"d{number}", f"callback {number}", last_sign=now - 2 * AFTER, call_id="fc"))
    most = int(silence.ASKED_PER_SECOND * PAUSE)
    for _ in range(2 * flights // most):
        watch.look()
        news = [dispatch for dispatch, *_ in dispatcher.of_kind("ask")]
        dispatcher.orders.clear()
        assert len(news) == most
        asked.update(news)
        for dispatch in news:
            flight = ledger.current(dispatch)
            assert flight is not None
            flight.question, flight.last_sign = False, now
        now += PAUSE + 0.01
    assert set(asked.values()) == {2} and len(asked) == flights, "everybody in turn"


def test_a_call_that_hangs_is_cancelled_once_airflow_has_moved_on(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    live: dict[object, database.Live] = {}
    monkeypatch.setattr(database, "live", lambda seconds: live)
    [submission] = queued(executor, workload())
    dispatch = submission.call.dispatch
    executor.dispatcher.says(reports.Submitted(dispatch, "fc-1"))
    executor.sync()
    now = time.time()
    monkeypatch.setattr(silence, "time", SimpleNamespace(time=lambda: now))

    def look() -> None:
        nonlocal now
        now += 2 * AFTER
        executor.sync()
        executor.dispatcher.says(reports.Alive(dispatch))
        executor.sync()

    look()
    assert executor.dispatcher.of_kind("cancel") == [], "its end may be on its way"
    live[key()] = database.Live(7, dispatch, False)
    look()
    live.clear()
    for _ in range(outcomes.MOVED_ON_LOOKS):
        assert executor.dispatcher.of_kind("cancel") == [], "that was another time"
        look()
    assert executor.dispatcher.of_kind("cancel") == [(dispatch, "fc-1")]
    assert executor.slots_occupied == 0 and executor.counters["moved_on"] == 1

from __future__ import annotations

from airflow_provider_modal.executors.ledger import Flight, Ledger


def test_a_key_has_one_current_dispatch() -> None:
    ledger = Ledger()
    ledger.open(Flight("d1", "task", last_sign=0))
    ledger.open(Flight("d2", "task", last_sign=0))
    assert ledger.current("d1") is None
    assert ledger.of_key("task") is ledger.current("d2") is not None
    assert (len(ledger), ledger.replaced) == (1, 1)


def test_opening_the_same_dispatch_again_replaces_nothing() -> None:
    ledger = Ledger()
    ledger.open(Flight("d1", "task", last_sign=0))
    ledger.open(Flight("d1", "task", last_sign=5))
    flight = ledger.current("d1")
    assert flight is not None and flight.last_sign == 5
    assert ledger.replaced == 0


def test_closing_forgets_both_ways() -> None:
    ledger = Ledger()
    ledger.open(Flight("d1", "task", last_sign=0))
    closed = ledger.close("task")
    assert closed is not None and closed.dispatch == "d1"
    assert (len(ledger), ledger.of_key("task"), ledger.current("d1"), ledger.close("task")) == (
        0,
        None,
        None,
        None,
    )


def test_silent_is_who_gave_no_sign_and_is_not_asked_about() -> None:
    ledger = Ledger()
    for dispatch, sign, question in [("old", 10, False), ("fresh", 95, False), ("asked", 10, True)]:
        ledger.open(Flight(dispatch, dispatch, last_sign=sign, question=question))
    assert [flight.dispatch for flight in ledger.silent(now=100, after=60)] == ["old"]
    assert ledger.waiting() == 1
    ledger.touch(["old", "unheard of"], now=100)
    assert ledger.silent(now=100, after=60) == []

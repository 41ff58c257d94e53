"""What do the records of former runs say?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_modal.scheduler import history
from airflow_provider_modal.scheduler.history import Look, Record

LOOK = Look(at=5.0, knobs="k")


def _records(*outcomes: str | None) -> list[Record]:
    return [
        Record(
            f"run-{number}",
            10.0 * number,
            outcome=outcome,
            ended=None if outcome is None else 10.0 * number + 1,
        )
        for number, outcome in enumerate(outcomes)
    ]


@pytest.mark.parametrize(
    ("outcomes", "failures"),
    [
        ([], 0),
        (["failed", "done"], 0),
        (["done", "failed", "vanished", "not ready", "lost the lock"], 4),
        (["failed", "locked", "failed", None], 2),
    ],
)
def test_failures_in_a_row(outcomes: list[str | None], failures: int) -> None:
    assert history.failures(_records(*outcomes)) == failures


@pytest.mark.parametrize(("failed", "waits"), [(2, None), (3, 120), (4, 240), (5, 480), (6, 600), (9, 600)])
def test_the_interval_doubles_up_to_ten_minutes(failed: int, waits: float | None) -> None:
    records = _records(*["failed"] * failed)
    until = history.slowed_until(records, 60)
    assert until == (None if waits is None else records[-1].ended + waits)  # type: ignore[operator]


def test_a_look_counts_until_another_run_may_have_changed_something() -> None:
    seen = replace(_records("done")[0], look=LOOK)
    assert history.last_look([seen]) == LOOK
    for harmless in ("locked", "locked out", "not ready"):
        assert history.last_look([seen, *_records(harmless)]) == LOOK
    for outcome in ("failed", "vanished", "done", None):
        assert history.last_look([seen, *_records(outcome)]) is None
    assert history.is_open(_records(None, "done")) and not history.is_open(_records("done"))


class State:
    """As much of a Dict as records need."""

    def __init__(self) -> None:
        self.stored: dict[str, object] = {}
        self.get = self.stored.get
        self.put = self.stored.__setitem__


def test_records_of_runs_that_live_are_left_open_and_those_of_dead_ones_closed() -> None:
    state: Any = State()
    dead = history.Journal(state, "killed")
    dead.begin()
    former = history.Journal(state, "of the former deployment")
    former.begin()
    former.has_lock()
    waits = history.Journal(state, "of the next deployment")
    waits.begin()
    assert [record.outcome for record in history.read(state)] == ["vanished", None, None]
    waits.end(history.LOCKED)
    assert history.is_open(history.read(state)), "the former one is still at work"
    former.end(history.DONE, look=LOOK)
    assert [record.outcome for record in history.read(state)] == ["vanished", "done", "locked"]
    assert history.last_look(history.read(state)) == LOOK


def test_a_look_of_a_run_that_ended_first_counts_no_more() -> None:
    first, second = _records("failed", "done")
    assert history.last_look([replace(first, ended=99.0), replace(second, look=LOOK)]) is None


def test_the_next_run_that_has_the_lock_closes_those_that_were_killed() -> None:
    state: Any = State()
    for _ in range(history.KEPT + 3):
        history.Journal(state, "killed").begin()
    journal = history.Journal(state, "the last")
    journal.begin()
    journal.has_lock()
    journal.end("done", look=LOOK)
    records = history.read(state)
    assert len(records) == history.KEPT
    assert {record.outcome for record in records[:-1]} == {"vanished"}
    assert (records[-1].reason, records[-1].look) == ("the last", LOOK)
    state.stored["runs"] = [{"of": "another release"}]
    assert history.read(state) == []

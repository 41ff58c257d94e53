"""What do the records of former runs say?"""

from __future__ import annotations

from dataclasses import replace

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
    assert history.is_open(_records("done", None)) and not history.is_open(_records(None, "done"))


def test_a_run_that_began_closes_those_that_were_killed() -> None:
    stored: dict[str, object] = {}

    class State:
        get = stored.get
        put = stored.__setitem__

    for _ in range(history.KEPT + 3):
        history.Journal(State(), "killed").begin()  # type: ignore[arg-type]
    journal = history.Journal(State(), "the last")  # type: ignore[arg-type]
    journal.begin()
    journal.end("done", look=LOOK)
    records = history.read(State())  # type: ignore[arg-type]
    assert len(records) == history.KEPT
    assert {record.outcome for record in records[:-1]} == {"vanished"}
    assert (records[-1].reason, records[-1].look) == ("the last", LOOK)
    stored["runs"] = [{"of": "another release"}]
    assert history.read(State()) == []  # type: ignore[arg-type]

"""Are triggerers that fail known, told and slowed down?"""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_modal import names
from airflow_provider_modal.cli import status
from airflow_provider_modal.triggerer import health
from airflow_provider_modal.triggerer.health import Health, Journal


class State:
    """As much of a Dict as the record needs."""

    def __init__(self) -> None:
        self.stored: dict[str, object] = {}
        self.get = self.stored.get
        self.put = self.stored.__setitem__


def test_failures_in_a_row_slow_the_start_until_one_does_its_work() -> None:
    state: Any = State()
    for number in range(1, 4):
        journal = Journal(state, "own")
        journal.begin()
        journal.end(f"failure {number}")
    known = health.read(state)
    assert (known.failures, known.message) == (3, "failure 3")
    assert known.held_until == known.at + 120
    journal = Journal(state, "own")
    journal.begin()
    assert health.read(state).failures == 3, "it may fail as well"
    journal.end(None)
    assert health.read(state) == Health()
    state.stored[names.TRIGGERER_KEY] = {"of": "another release"}
    assert health.read(state) == Health()


@pytest.mark.parametrize(("successor", "failures"), [("own", 1), ("of a later deployment", 0)])
def test_one_that_never_ended_was_killed_unless_a_later_deployment_ended_it(
    successor: str, failures: int
) -> None:
    state: Any = State()
    Journal(state, "own").begin()
    Journal(state, successor).begin()
    assert health.read(state).failures == failures


def test_status_tells_of_failing_triggerers_while_the_scheduler_works() -> None:
    tick: dict[str, Any] = {"at": 1000.0}
    failing = Health(3, 1000.0, "no such module")
    assert status._judged(tick, [], 60, None, Health(), 1010.0)[0] == "idle"
    word, sentence = status._judged(tick, [], 60, None, failing, 1010.0)
    assert word == "failing"
    assert "the last 3 triggerers failed: no such module" in sentence and "1970-01-01T00:18:40" in sentence

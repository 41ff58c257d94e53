"""What becomes of a call that no container takes, or whose container can't begin with it?"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_modal.executors import database


class Settlements:
    """Airflow's database, as far as it hands dispatches back; what it does is tested with real rows."""

    def __init__(self) -> None:
        self.whys: list[str] = []

    def settle(self, key: Any, dispatch: str, why: str, *, lost: bool = True) -> str:
        assert lost, "the repetitions are bounded by counting the losses"
        self.whys.append(why)
        return "requeued" if len(self.whys) == 1 else "exhausted"


@pytest.fixture
def settlements(monkeypatch: pytest.MonkeyPatch) -> Settlements:
    """The database says that every task is still waited for, under the dispatch that is under way."""
    found = Settlements()
    monkeypatch.setattr(database, "settle", found.settle)
    return found


@pytest.fixture
def waiting_loop(
    settings: pytest.MonkeyPatch, new_loop: Callable[..., Any], settlements: Settlements
) -> Callable[..., Any]:
    """Makes loops that ask about what is silent every second, with further options."""

    def make(**options: str) -> Any:
        settings.setenv("AIRFLOW__MODAL__SILENT_AFTER", "1")
        for name, value in options.items():
            settings.setenv(f"AIRFLOW__MODAL__{name.upper()}", value)
        loop = new_loop()

        def live(seconds: float) -> dict[Any, database.Live]:
            return {
                flight.key: database.Live(loop.executor.job_id, flight.dispatch, False)
                for flight in loop.executor.ledger
            }

        settings.setattr(database, "live", live)
        return loop

    return make


def _is_over(call_id: str) -> bool:
    import modal

    try:
        modal.FunctionCall.from_id(call_id).get(timeout=0)
    except TimeoutError:
        return False
    except BaseException:  # what Modal raises for a cancelled call is no Exception
        return True
    return True


def test_containers_that_end_while_they_start_are_told_and_bounded(
    waiting_loop: Callable[..., Any], settlements: Settlements
) -> None:
    loop = waiting_loop(start_timeout="1")
    loop.queue("ok-unlucky", queue="broken")
    loop.until(lambda: settlements.whys, 60)
    assert "execute_task_broken end while they start" in settlements.whys[0]
    assert "ModuleNotFoundError: No module named 'no_such_package'" in settlements.whys[0]
    assert "image.pip" in settlements.whys[0]
    assert loop.executor.counters["failed_starts"] == 1
    assert (loop.executor.slots_occupied, loop.executor.counters["dispatched_again"]) == (0, 1)
    [(_, external_id)] = loop.events["ok-unlucky"]
    assert _is_over(external_id.partition("/")[2]), "two calls of one task would wait"

    loop.queue("ok-unlucky-again", queue="broken")
    loop.until(lambda: loop.ended("ok-unlucky-again"), 60)
    state, reason = loop.events["ok-unlucky-again"][-1]
    assert state == "failed"
    assert "4 times and did not start" in reason and "no_such_package" in reason


def test_waiting_for_capacity_is_no_failed_start_and_ends_when_nobody_waits(
    new_loop: Callable[..., Any],
    waiting_loop: Callable[..., Any],
    settings: pytest.MonkeyPatch,
    settlements: Settlements,
    stand_in_starts: Callable[[str], list[str]],
) -> None:
    # Of a scheduler that lets a container take its time to start.
    other = new_loop()
    first = other.queue("hang-first", queue="scarce")["hang-first"]
    other.until(lambda: stand_in_starts(first), 60)
    loop = waiting_loop(start_timeout="1", capacity_timeout="4")
    loop.queue("ok-second", queue="scarce")
    loop.until(lambda: loop.ended("ok-second"), 60)
    state, reason = loop.events["ok-second"][-1]
    assert state == "failed"
    assert re.search(r"no container took the task within 4 s \(\d calls wait and \d containers run\)", reason)
    assert "[modal] capacity_timeout" in reason
    assert (settlements.whys, loop.executor.counters["failed_starts"]) == ([], 0)

    # Cleared, marked or deleted: the task's row is in another state, or not there any more.
    settings.setattr(database, "live", lambda seconds: {})
    loop.queue("ok-cleared", queue="scarce")
    loop.until(lambda: loop.executor.counters["moved_on"] == 1, 60)
    assert not loop.executor.running
    assert not loop.ended("ok-cleared")
    [(_, external_id)] = loop.events["ok-cleared"]
    loop.until(lambda: _is_over(external_id.partition("/")[2]), 60)

    [call_id] = stand_in_starts(first)
    [held] = other.executor.running
    other.executor.revoke_task(ti=SimpleNamespace(key=held, external_executor_id=f"{first}/{call_id}"))
    other.until(lambda: _is_over(call_id), 60)


def test_what_failed_before_it_began_is_dispatched_again(
    waiting_loop: Callable[..., Any], settlements: Settlements
) -> None:
    loop = waiting_loop()
    loop.queue("unready")
    loop.until(lambda: settlements.whys, 60)
    assert settlements.whys == ["the container's Airflow process could not start"]
    assert loop.executor.slots_occupied == 0
    assert "failed" not in [state for state, _ in loop.events.get("unready", [])]

"""How long is a submission repeated, and a cancellation pursued? With a gateway that says what it is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from modal import exception

from airflow_provider_modal.executors import cancelling, reports, submit_errors
from airflow_provider_modal.executors import dispatcher as dispatcher_module
from airflow_provider_modal.executors.call_state import CallState
from airflow_provider_modal.executors.dispatcher import Dispatcher, Submission
from airflow_provider_modal.executors.options import Options
from airflow_provider_modal.names import ResourceNames
from local_modal.testing import wait_until

PATIENCE = 60.0
ATTEMPT = 15.0
"""Seconds that an attempt takes, by the dispatcher's clock."""


class ScriptedGateway:
    """Raises or returns what the script says, one entry a spawn; the last one for ever."""

    now = 0.0

    def __init__(self, *script: Exception | str) -> None:
        self.resources = ResourceNames("prod")
        self.script = itertools.chain(script, itertools.repeat(script[-1]))
        self.asked: list[tuple[Any, ...]] = []
        self.over = False

    async def spawn(self, *arguments: Any) -> str:
        self.asked.append(("spawn",))
        ScriptedGateway.now += ATTEMPT
        answer = next(self.script)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def note_call(self, dispatch: str, call_id: str) -> None:
        self.asked.append(("note", dispatch, call_id))

    async def noted_call(self, dispatch: str) -> str | None:
        return None

    async def note_cancel(self, dispatch: str, why: str) -> None:
        self.asked.append(("note_cancel", dispatch, why))

    async def cancel(self, call_id: str, terminate: bool = False) -> None:
        self.asked.append(("terminate" if terminate else "cancel", call_id))

    async def state_of(self, call_id: str) -> CallState:
        return CallState(over=self.over)

    async def close(self) -> None:
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[ScriptedGateway], Dispatcher]]:
    monkeypatch.setattr(submit_errors, "BACKOFF_FIRST", 0.02)
    monkeypatch.setattr(submit_errors, "BACKOFF_MOST", 0.05)
    monkeypatch.setattr(cancelling, "GRACE", 0.1)
    # Patience is a matter of the attempts that are made, not of how fast this machine is.
    monkeypatch.setattr(dispatcher_module, "time", SimpleNamespace(monotonic=lambda: ScriptedGateway.now))
    made = []

    def start(gateway: ScriptedGateway) -> Dispatcher:
        dispatcher = Dispatcher(gateway, Options())  # type: ignore[arg-type]
        dispatcher.start()
        made.append(dispatcher)
        return dispatcher

    yield start
    for dispatcher in made:
        dispatcher.stop(0)


def submission(dispatch: str = "d1") -> Submission:
    call = SimpleNamespace(dispatch=dispatch, to_wire=lambda: {})
    return Submission(call, "execute_task", PATIENCE)  # type: ignore[arg-type]


def heard(dispatcher: Dispatcher) -> list[reports.Report]:
    news: list[reports.Report] = []
    wait_until(lambda: news.extend(dispatcher.drain()) or news, 30, "the dispatcher reports")
    return news


def test_a_modal_at_its_limit_is_waited_for_longer_than_one_that_is_away(
    started: Callable[[ScriptedGateway], Dispatcher],
) -> None:
    busy = exception.ResourceExhaustedError("too many containers")
    gateway = ScriptedGateway(*[busy] * 20, "fc-1")
    dispatcher = started(gateway)
    dispatcher.submit(submission())
    assert heard(dispatcher) == [reports.Submitted("d1", "fc-1")]
    assert gateway.asked.count(("spawn",)) == 21

    away = started(ScriptedGateway(exception.ServiceError("unavailable")))
    away.submit(submission())
    [report] = heard(away)
    assert isinstance(report, reports.NotSubmitted) and "given up after" in report.reason
    assert report.doubtful, "Modal may have started it all the same"


def test_the_patience_with_silence_begins_when_modal_last_answered(
    started: Callable[[ScriptedGateway], Dispatcher],
) -> None:
    busy = exception.ResourceExhaustedError("too many containers")
    gateway = ScriptedGateway(*[busy] * 20, exception.ServiceError("unavailable"), "fc-1")
    dispatcher = started(gateway)
    dispatcher.submit(submission())
    assert heard(dispatcher) == [reports.Submitted("d1", "fc-1", doubtful=True)]


def test_a_call_that_outlives_its_cancellation_loses_its_container(
    started: Callable[[ScriptedGateway], Dispatcher],
) -> None:
    gateway = ScriptedGateway("fc-1")
    dispatcher = started(gateway)
    dispatcher.cancel("d1", "fc-1", "taken back")
    assert heard(dispatcher) == [reports.Cancelled("d1")]
    assert gateway.asked == [("note_cancel", "d1", "taken back"), ("cancel", "fc-1"), ("terminate", "fc-1")]


def test_a_cancelled_call_that_ended_is_left_alone(
    started: Callable[[ScriptedGateway], Dispatcher],
) -> None:
    gateway = ScriptedGateway("fc-1")
    gateway.over = True
    dispatcher = started(gateway)
    dispatcher.finish_cancel("d1", "fc-1", 0.0)
    assert heard(dispatcher) == [reports.Cancelled("d1")]
    assert gateway.asked == []


def test_what_is_revoked_before_modal_takes_it_is_over_at_once(
    started: Callable[[ScriptedGateway], Dispatcher],
) -> None:
    gateway = ScriptedGateway(exception.ResourceExhaustedError("too many containers"))
    dispatcher = started(gateway)
    dispatcher.submit(submission())
    wait_until(lambda: gateway.asked, 30, "the first attempt")
    dispatcher.cancel("d1", None, "taken back")
    assert heard(dispatcher) == [reports.Cancelled("d1")]

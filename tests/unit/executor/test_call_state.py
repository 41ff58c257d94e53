from __future__ import annotations

import asyncio
from typing import Any

import pytest
from grpclib.exceptions import StreamTerminatedError
from modal import exception

from airflow_provider_modal import wire
from airflow_provider_modal.executors.call_state import CallState, state_of

COMPLETION = wire.Completion("d1", wire.TaskKey("d", "t", "r", 1), "done")


def told(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> CallState:
    """What is made of a function call whose result is ``outcome``."""
    import modal

    class Get:
        async def aio(self, timeout: float) -> Any:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

    class Call:
        get = Get()

    monkeypatch.setattr(modal.FunctionCall, "from_id", lambda call_id, client: Call())
    return asyncio.run(state_of("fc-1"))


def test_a_result_is_the_workers_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, COMPLETION.to_wire()) == CallState(over=True, completion=COMPLETION)
    state = told(monkeypatch, {"wire": 99})
    assert state.over and "redeploy" in str(state.failure)


def test_without_a_result_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, TimeoutError()) == CallState(over=False)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (exception.FunctionTimeoutError("after 3600 s"), ["time limit", "after 3600 s", "timeout"]),
        (exception.InputCancellation("x"), ["fc-1 was cancelled"]),
        (exception.RemoteError(""), ["fc-1 was cancelled"]),
        (exception.RemoteError("input was terminated"), ["cancelled", "input was terminated"]),
        (exception.OutputExpiredError(), ["7 days"]),
        (exception.RemoteError("No module named 'pandas'"), ["No module named 'pandas'", "image.pip"]),
        (exception.RemoteError("Image build failed"), ["Image build failed", "image in config.yaml"]),
        (exception.RemoteError("container ran out of memory"), ["'memory': more MiB"]),
        (ValueError("odd"), ["ValueError: odd", "App's logs"]),
    ],
)
def test_a_failure_says_what_happened_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, parts: list[str]
) -> None:
    state = told(monkeypatch, error)
    assert state.over and state.known and state.completion is None
    assert all(part in str(state.failure) for part in parts), state.failure


def test_a_call_that_modal_does_not_know_is_over_and_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    state = told(monkeypatch, exception.NotFoundError("no such call"))
    assert state.over and not state.known


@pytest.mark.parametrize(
    "error",
    [
        exception.ConnectionError("away"),
        exception.InternalError("oops"),
        OSError("broken"),
        StreamTerminatedError("reset by remote party"),
    ],
)
def test_no_answer_is_no_news(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(type(error)):
        told(monkeypatch, error)

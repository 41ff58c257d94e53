from __future__ import annotations

import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_modal import wire
from airflow_provider_modal.wire import Claim, Completion, TaskCall, TaskKey, WireError

texts = st.text(max_size=30)
keys = st.builds(TaskKey, texts, texts, texts, try_number=st.integers(0, 99), map_index=st.integers(-1, 1000))
times = st.floats(0, 1e10)
calls = st.builds(
    TaskCall,
    dispatch=texts,
    kind=st.sampled_from(["task", "command"]),
    key=keys,
    workload=texts,
    log_path=st.none() | texts,
    partition=texts,
    timeout=times,
    env=st.dictionaries(texts, texts, max_size=3),
    on_container_loss=st.sampled_from(["fail", "rerun"]),
    wakes_scheduler=st.booleans(),
    queued_at=times,
)
completions = st.builds(
    Completion,
    dispatch=texts,
    key=keys,
    outcome=st.sampled_from(["done", "failed", "obsolete"]),
    reason=st.none() | texts,
    call_id=st.none() | texts,
    container=st.none() | texts,
    started_at=st.none() | times,
    ended_at=st.none() | times,
)
claims = st.builds(
    Claim,
    token=texts,
    phase=st.sampled_from(["claimed", "started"]),
    container=texts,
    at=times,
    deliveries=st.integers(1, 9),
)


def through_json(message: object) -> dict[str, object]:
    again: dict[str, object] = json.loads(json.dumps(message))
    return again


@given(calls)
def test_a_task_call_survives_the_wire(call: TaskCall) -> None:
    assert TaskCall.from_wire(through_json(call.to_wire())) == call


@given(completions)
def test_a_completion_survives_the_wire(event: Completion) -> None:
    assert Completion.from_wire(through_json(event.to_wire())) == event


@given(claims)
def test_a_claim_survives_the_wire(claim: Claim) -> None:
    assert Claim.from_wire(through_json(claim.to_wire())) == claim


def a_call() -> TaskCall:
    key = TaskKey("dag", "task", "run", 1)
    return TaskCall("d", "task", key, '{"token": "hush"}', None, "scheduler", 60, env={"KEY": "hush"})


def test_the_token_and_the_environment_are_not_shown() -> None:
    assert "hush" not in repr(a_call())


@pytest.mark.parametrize("cls", [TaskCall, Completion, Claim])
def test_another_version_says_to_redeploy(cls: type[TaskCall]) -> None:
    with pytest.raises(WireError, match="redeploy: modalflow create"):
        cls.from_wire({"wire": wire.WIRE_VERSION + 1})


@pytest.mark.parametrize("message", [{}, {"dispatch": "d"}, None, [], "text", 3])
@pytest.mark.parametrize("cls", [TaskCall, Completion, Claim])
def test_what_is_not_a_message_of_ours_is_refused(cls: type[TaskCall], message: object) -> None:
    with pytest.raises(WireError, match="malformed"):
        cls.from_wire(message)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", [f.name for f in fields(TaskCall) if f.name not in ("env", "queued_at")])
def test_a_call_without_a_needed_field_is_refused(missing: str) -> None:
    message = {name: value for name, value in a_call().to_wire().items() if name != missing}
    if missing in (
        "requirements",
        "on_container_loss",
        "wakes_scheduler",
        "memory",
        "log_lines",
        "lost_after",
    ):
        assert TaskCall.from_wire(message) == a_call_like(message)
        return
    with pytest.raises(WireError, match="malformed task call"):
        TaskCall.from_wire(message)


def a_call_like(message: dict[str, object]) -> TaskCall:
    return TaskCall.from_wire({**a_call().to_wire(), "queued_at": message["queued_at"]})


@pytest.mark.parametrize("key", [None, {}, [], "text", {"dag_id": "d", "surplus": 1}])
def test_a_call_with_a_malformed_key_is_refused(key: object) -> None:
    with pytest.raises(WireError, match="malformed"):
        TaskCall.from_wire({**a_call().to_wire(), "key": key})


def test_a_field_of_a_newer_side_is_ignored() -> None:
    for message in (a_call(), Completion("d", a_call().key, "done"), Claim("t", "claimed", "ta-1", 1.0)):
        assert type(message).from_wire({**message.to_wire(), "surplus": 1}) == message


@given(st.uuids().map(str), st.none() | st.from_regex(r"fc-[A-Za-z0-9]{1,20}", fullmatch=True))
def test_the_external_executor_id_is_read_back(dispatch: str, call_id: str | None) -> None:
    value = wire.external_executor_id(dispatch, call_id)
    assert wire.parse_external_executor_id(value) == (dispatch, call_id)


@pytest.mark.parametrize("value", [None, ""])
def test_no_external_executor_id_is_no_dispatch(value: str | None) -> None:
    assert wire.parse_external_executor_id(value) == (None, None)


def test_a_field_of_a_newer_key_is_ignored() -> None:
    message = a_call().to_wire()
    assert TaskCall.from_wire({**message, "key": {**message["key"], "surplus": 1}}).key == a_call().key

"""Containers die, inputs are delivered twice: user code starts once, every run ends, and a reason is told."""

from __future__ import annotations

from typing import Any

import pytest

from local_modal.testing import wait_until
from tests.acceptance.deployment import Deployment
from tests.acceptance.recorder import Recorder

pytestmark = pytest.mark.faults


def _busy(deployment: Deployment, function: str) -> dict[str, Any]:
    """Wait for a container of a function that has an input and return it."""

    def busy() -> dict[str, Any] | None:
        return next((task for task in deployment.modal.tasks(function) if task["running_inputs"]), None)

    found = wait_until(busy, 120, f"a container of {function} has an input")
    assert found is not None
    return found


def test_the_run_survives_a_scheduler_that_is_killed(recorded: Deployment, recorder: Recorder) -> None:
    run_id = recorded.trigger("recorded_chain")
    # While it hands out the first task, and again while it must move the second.
    recorded.kill_container(_busy(recorded, "scheduler_run")["task_id"])
    recorder.wait_for(f"{run_id}:first")
    recorder.release(f"{run_id}:first")
    recorded.kill_container(_busy(recorded, "scheduler_run")["task_id"])

    run = recorded.finished("recorded_chain", run_id)
    assert run["state"] == "success"
    for event in ("first", "second", "third"):
        assert len(recorder.events(f"{run_id}:{event}")) == 1
    assert {task["try_number"] for task in run["tasks"]} == {1}


def test_a_container_killed_before_user_code_costs_nothing(recorded: Deployment, recorder: Recorder) -> None:
    for worker in recorded.modal.tasks("execute_task"):
        recorded.kill_container(worker["task_id"])  # the next one starts cold, which takes seconds
    run_id = recorded.trigger("recorded_single")
    starting = _busy(recorded, "execute_task")
    recorded.kill_container(starting["task_id"])
    assert not recorder.events(f"{run_id}:start"), "user code was faster than this test"

    recorder.release(f"{run_id}:start")
    run = recorded.finished("recorded_single", run_id)
    assert run["state"] == "success"
    (start,) = recorder.events(f"{run_id}:start")
    assert start["try"] == 1
    assert start["container"] != starting["task_id"]


def test_a_container_killed_in_user_code_fails_the_task_with_a_reason(
    recorded: Deployment, recorder: Recorder
) -> None:
    run_id = recorded.trigger("recorded_single")
    (start,) = recorder.wait_for(f"{run_id}:start")
    recorded.kill_container(start["container"])

    run = recorded.finished("recorded_single", run_id)
    assert run["state"] == "failed"
    assert len(recorder.events(f"{run_id}:start")) == 1
    assert not recorder.events(f"{run_id}:end")
    (task,) = run["tasks"]
    assert start["container"] in task["reason"]


def test_a_second_delivery_of_a_running_input_is_refused(recorded: Deployment, recorder: Recorder) -> None:
    run_id = recorded.trigger("recorded_single")
    (start,) = recorder.wait_for(f"{run_id}:start")
    second = recorded.modal.control("redeliver", task_id=start["container"])["task_id"]
    assert second != start["container"]
    wait_until(
        lambda: (
            not any(task["running_inputs"] for task in recorded.modal.tasks() if task["task_id"] == second)
        ),
        120,
        "the second container is done with the input",
    )
    assert recorded.show("recorded_single", run_id)["state"] == "running"

    recorder.release(f"{run_id}:start")
    run = recorded.finished("recorded_single", run_id)
    assert run["state"] == "success"
    assert len(recorder.events(f"{run_id}:start")) == len(recorder.events(f"{run_id}:end")) == 1

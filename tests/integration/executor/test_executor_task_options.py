"""What a task asks for by ``executor_config``, at a real function: resources, Secrets, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import modal
import pytest
from airflow.utils.state import TaskInstanceState

from airflow_provider_modal.executors.function_options import FunctionOptions
from airflow_provider_modal.executors.gateway import Gateway
from airflow_provider_modal.names import ResourceNames
from local_modal.testing import LocalModal

SUCCESS = (TaskInstanceState.SUCCESS, None)


@pytest.fixture
def secrets(settings: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment's own Secret, and one of a user's that holds a value of the same name."""
    own = ResourceNames("stand-in").secrets
    modal.Secret.objects.create(own, {"MODALFLOW_ROLE": "worker", "SHARED": "own"})
    modal.Secret.objects.create("task-secret", {"FROM_TASK_SECRET": "yes", "SHARED": "task"})
    yield
    for name in (own, "task-secret"):
        modal.Secret.objects.delete(name)


@pytest.fixture
def looked() -> Callable[[str], dict[str, str | None]]:
    """Returns what a task found in its container's environment."""
    return lambda dispatch: dict(modal.Dict.from_name("stand-in-starts")[f"look/{dispatch}"])


def asked(**options: Any) -> dict[str, Any]:
    return {"executor_config": {"modal": options}}


def test_resources_arrive_and_everything_else_stays(
    loop: Any, modal_server: LocalModal, looked: Callable[[str], dict[str, str | None]]
) -> None:
    wanted = asked(gpu="a10g:2", cpu=[0.5, 1], memory=300, region="us-east", cloud="aws", timeout=4000)
    dispatch = loop.queue("look", **wanted)["look"]
    loop.until(lambda: loop.ended("look"))
    assert loop.events["look"][-1] == SUCCESS
    [wants] = [task["wants"] for task in modal_server.tasks() if task["wants"]["gpu"]]
    assert wants == {
        "gpu": "A10G:2",
        "cpu": [0.5, 1.0],
        "memory": [300, 300],
        "regions": ["us-east"],
        "cloud": "aws",
        "timeout": 4360,
    }
    assert looked(dispatch) == {
        "FROM_FUNCTION": "yes",
        "FROM_TASK_SECRET": None,
        "SHARED": None,
        "MODALFLOW_ROLE": None,
    }


@pytest.mark.usefixtures("secrets")
def test_a_tasks_secrets_come_to_the_environments_whose_values_win(
    loop: Any, looked: Callable[[str], dict[str, str | None]]
) -> None:
    dispatch = loop.queue("look-secrets", **asked(secrets=["task-secret"]))["look-secrets"]
    loop.until(lambda: loop.ended("look-secrets"))
    assert loop.events["look-secrets"][-1] == SUCCESS
    # What the function's own env= said went with its nameless Secret: the environment's says it again.
    assert looked(dispatch) == {
        "FROM_FUNCTION": None,
        "FROM_TASK_SECRET": "yes",
        "SHARED": "own",
        "MODALFLOW_ROLE": "worker",
    }


@pytest.mark.usefixtures("secrets")
def test_what_modal_refuses_fails_that_task_alone_with_modals_words(loop: Any) -> None:
    loop.queue("ok-alone")
    loop.queue("gpu", **asked(gpu="H1000"))
    loop.queue("secret", **asked(secrets=["no-such-secret"]))
    loop.until(lambda: loop.ended("ok-alone", "gpu", "secret"))
    assert loop.events["ok-alone"][-1] == SUCCESS
    for task, told in (
        ("gpu", ["gpu='H1000'", "unknown GPU type 'H1000'", "executor_config['modal']"]),
        ("secret", ["'no-such-secret'", "not found", "executor_config['modal']"]),
    ):
        state, reason = loop.events[task][-1]
        assert state == TaskInstanceState.FAILED
        assert all(part in reason for part in told), reason
        assert "modalflow create" not in reason
    assert loop.executor.slots_occupied == 0


def test_equal_wishes_share_one_variant_and_its_containers(loop: Any, modal_server: LocalModal) -> None:
    tasks = [f"ok-equal-{n}" for n in range(6)]
    loop.queue(*tasks[:3], **asked(memory=[200, 301]))
    loop.queue(*tasks[3:], **asked(memory=(200, 301)))
    loop.until(lambda: loop.ended(*tasks))
    variants = {task["function_id"] for task in modal_server.tasks() if task["wants"]["memory"] == [200, 301]}
    assert len(variants) == 1
    gateway = loop.executor._dispatcher._gateway
    assert [options for _, options in gateway._functions if options] == [FunctionOptions(memory=(200, 301))]


async def _spawn_through_a_handle_that_is_out_of_date(gateway: Gateway) -> str:
    options = FunctionOptions(memory=(128, 256))
    await gateway.spawn("execute_task", {"wire": 99}, options)
    [looking] = gateway._functions.values()
    (await looking)._object_id = "fu-gone"  # as after destroy and create
    return await gateway.spawn("execute_task", {"wire": 99}, options)


def test_a_handle_that_outlived_its_deployment_is_looked_up_again(settings: pytest.MonkeyPatch) -> None:
    import asyncio

    gateway = Gateway(ResourceNames("stand-in"), 10)
    assert asyncio.run(_spawn_through_a_handle_that_is_out_of_date(gateway)).startswith("fc-")

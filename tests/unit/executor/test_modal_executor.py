from __future__ import annotations

import logging
import subprocess
import sys
import uuid
from typing import Any

import pytest
from airflow.executors.workloads import ExecuteTask
from airflow.utils.state import TaskInstanceState

from airflow_provider_modal import config, deployment, names, wire
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.executors import ModalExecutor
from airflow_provider_modal.executors.function_options import FunctionOptions
from tests.support.recorded_executor import Executor, ended, key, queued, task_instance, workload


def test_a_task_becomes_a_task_call_that_the_worker_can_read_back(executor: Executor) -> None:
    item = workload()
    [submission] = queued(executor, item)
    call = wire.TaskCall.from_wire(submission.call.to_wire())
    assert submission.function == names.EXECUTE_TASK
    assert call.dispatch == item.ti.external_executor_id
    assert call.key == wire.TaskKey("d", "t", "r", 1)
    assert (call.kind, call.partition, call.wakes_scheduler) == ("task", "scheduler", True)
    assert (call.timeout, call.log_path) == (3600, "dag_id=d/attempt=1.log")
    rebuilt = ExecuteTask.model_validate_json(call.workload)
    assert (rebuilt.ti.id, rebuilt.token, rebuilt.bundle_info.version) == (item.ti.id, "secret-token", "abc")
    assert "secret-token" not in repr(call)
    assert executor.running == {key()} and not executor.queued_tasks
    assert executor.in_flight_submissions == 1 and executor.busy


def test_without_a_fresh_id_of_airflow_the_dispatch_gets_one(executor: Executor) -> None:
    items = [workload("a", external_executor_id=None), workload("b", external_executor_id="old/fc-1")]
    dispatches = [submission.call.dispatch for submission in queued(executor, *items)]
    assert len({uuid.UUID(dispatch) for dispatch in dispatches}) == 2


def test_a_queue_chooses_the_worker_profile(executor: Executor) -> None:
    [gpu] = queued(executor, workload(queue="gpu"))
    assert (gpu.function, gpu.call.timeout) == ("execute_task_gpu", 7200)


def test_airflows_default_queue_is_the_default_profile(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_QUEUE", "celery")
    [submission] = queued(executor, workload(queue="celery"))
    assert submission.function == names.EXECUTE_TASK


@pytest.mark.parametrize(
    ("ti", "told"),
    [
        ({"executor_config": {"modal": {"gpus": "H100"}}}, ["['modal']['gpus']", "did you mean 'gpu'"]),
        ({"executor_config": {"modal": {"memory": "4G"}}}, ["['modal']['memory']", "MiB", "found '4G'"]),
        ({"executor_config": {"modal": {"gpu": object()}}}, ["['modal']['gpu']", "found object"]),
        ({"executor_config": {"modal": "gpu"}}, ["must be a dict", "str"]),
        ({"queue": "gqu"}, ["queue 'gqu'", "did you mean 'gpu'", "default, gpu"]),
        ({"queue": "nothing-like-it"}, ["known are: default, gpu", "modalflow create"]),
    ],
)
def test_what_a_task_cannot_have_fails_that_task_with_a_sentence(
    executor: Executor, ti: dict[str, Any], told: list[str]
) -> None:
    assert queued(executor, workload(**ti)) == []
    state, reason = executor.get_event_buffer()[key()]
    assert state == TaskInstanceState.FAILED
    assert all(part in reason for part in told), reason
    assert executor.slots_occupied == 0


@pytest.mark.parametrize("executor_config", [None, {}, {"modal": {}}, {"modal": None}, {"pod_override": 1}])
def test_what_others_need_in_executor_config_is_not_ours_to_judge(
    executor: Executor, executor_config: dict[str, Any] | None
) -> None:
    assert len(queued(executor, workload(executor_config=executor_config))) == 1


def test_what_a_task_asks_for_reaches_the_function_and_the_worker(executor: Executor) -> None:
    wanted = {
        "gpu": "h100:2",
        "memory": 4096,
        "secrets": ["hf"],
        "env": {"GREETING": "hi"},
        "timeout": 60,
        "on_container_loss": "rerun",
        "log_lines": 5,
    }
    [submission] = queued(executor, workload(executor_config={"modal": wanted}))
    assert submission.options == FunctionOptions(
        gpu="H100:2", memory=(4096, 4096), secrets=("hf", "airflow-secrets-prod")
    )
    call = wire.TaskCall.from_wire(submission.call.to_wire())
    assert (call.env, call.timeout, call.on_container_loss) == ({"GREETING": "hi"}, 60, "rerun")
    assert (call.memory, call.log_lines) == (4096, 5)


def test_only_a_time_limit_above_the_profiles_changes_the_function(executor: Executor) -> None:
    items = [workload(f"t{n}", executor_config={"modal": {"timeout": n}}) for n in (3600, 3600.5)]
    equal, longer = queued(executor, *items)
    assert not equal.options
    assert longer.options == FunctionOptions(timeout=3601 + config.CALL_MARGIN_SECONDS)


def test_parallelism_holds_and_the_rest_waits(executor: Executor) -> None:
    submissions = queued(executor, *(workload(f"t{n}") for n in range(6)))
    assert (len(submissions), len(executor.queued_tasks), executor.slots_available) == (4, 2, -2)
    executor.dispatcher.says(*(ended(submission.call.dispatch) for submission in submissions))
    executor.sync()
    assert len(queued(executor)) == 2


def test_elsewhere_workloads_wait_until_the_deployment_is_known(settings: pytest.MonkeyPatch) -> None:
    settings.delenv("MODALFLOW_SETTINGS")
    executor = Executor(parallelism=4)
    executor.start()
    assert executor.dispatcher.of_kind("learn") == [()]
    assert queued(executor, workload()) == []
    assert len(executor.queued_tasks) == 1 and not executor.running
    assert executor._deployed is not None
    configured = config.EnvironmentConfig(connection_string="")
    executor._deployed._learn(
        configured, deployment.worker_profiles(configured, executor._deployed.resources)
    )
    assert len(queued(executor)) == 1


def test_where_nothing_is_deployed_tasks_fail_with_that_reason(settings: pytest.MonkeyPatch) -> None:
    settings.delenv("MODALFLOW_SETTINGS")
    executor = Executor(parallelism=4)
    executor.start()
    queued(executor, workload())
    assert executor._deployed is not None
    executor._deployed.problem = "run modalflow create"
    queued(executor, workload("later"))
    assert executor.get_event_buffer() == {
        key(): (TaskInstanceState.FAILED, "run modalflow create"),
        key("later"): (TaskInstanceState.FAILED, "run modalflow create"),
    }
    assert executor.slots_occupied == 0


def test_without_an_environment_it_does_not_start(settings: pytest.MonkeyPatch) -> None:
    settings.delenv("AIRFLOW__MODAL__ENVIRONMENT")
    with pytest.raises(ConfigError, match=r"\[modal\] environment is not set"):
        Executor(parallelism=4).start()


def test_the_log_of_a_running_task_has_a_source_on_an_executor_that_was_never_started() -> None:
    executor = ModalExecutor(parallelism=1)
    for external_id, told in [
        ("d1/fc-1", "fc-1"),
        ("d1", "not known yet"),
        ("arn/x/y", "not known yet"),
        (None, "not known yet"),
    ]:
        messages, lines = executor.get_task_log(task_instance(external_executor_id=external_id), 1)
        assert told in messages[0]
        assert lines == []


def test_ending_an_executor_that_was_never_started_does_nothing() -> None:
    executor = ModalExecutor(parallelism=1)
    executor.end()
    executor.terminate()
    executor.sync()
    assert not executor.busy and executor.in_flight_submissions == 0


def test_loading_the_executor_does_not_load_modal() -> None:
    code = (
        "import sys, airflow_provider_modal.executors as e; assert 'airflow' not in sys.modules;"
        "e.ModalExecutor; assert 'modal' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("seconds", "told"), [("600", True), ("43200", False)])
def test_an_airflow_that_takes_waiting_tasks_back_is_told_at_the_start(
    settings: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seconds: str, told: bool
) -> None:
    settings.setenv("AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT", seconds)
    # Not Airflow's own, whose output depends on how this process was set up.
    logger = logging.Logger("told")
    logger.addHandler(caplog.handler)
    settings.setattr(Executor, "log", logger)
    Executor(parallelism=4).start()
    assert ("[scheduler] task_queued_timeout is 600 s" in caplog.text) is told

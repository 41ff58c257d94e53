from __future__ import annotations

import json
import subprocess
import sys
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.executors import workloads
from airflow.executors.workloads import ExecuteCallback, ExecuteTask
from airflow.executors.workloads.base import BundleInfo
from airflow.executors.workloads.callback import CallbackDTO, CallbackFetchMethod
from airflow.executors.workloads.task import TaskInstanceDTO
from airflow.models.callback import CallbackKey
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.state import CallbackState, TaskInstanceState

from airflow_provider_modal import config, deployment, names, wire
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.executors import ModalExecutor, reports
from airflow_provider_modal.executors.deployed import Deployed
from airflow_provider_modal.executors.dispatcher import Dispatcher, Submission
from airflow_provider_modal.executors.function_options import FunctionOptions
from airflow_provider_modal.executors.options import Options

DATABASE = "postgresql://u:p@host/db"
SILENT_AFTER = 60.0


class RecordedDispatcher(Dispatcher):
    """Takes orders like the real one and carries none out; tests make the reports."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(), Options())  # type: ignore[arg-type]
        self.orders: list[tuple[Any, ...]] = []

    def start(self) -> None:
        self.orders.append(("start",))

    def learn(self, deployed: Deployed) -> None:
        self.orders.append(("learn",))

    def listen(self, partition: str) -> None:
        self.orders.append(("listen", partition))

    def submit(self, submission: Submission) -> None:
        self.orders.append(("submit", submission))

    def ask(self, dispatch: str, call_id: str | None, *, modal: bool) -> None:
        self.orders.append(("ask", dispatch, call_id, modal))

    def cancel(self, dispatch: str, call_id: str | None, why: str) -> None:
        assert why
        self.orders.append(("cancel", dispatch, call_id))

    def finish_cancel(self, dispatch: str, call_id: str | None, seconds: float) -> None:
        self.orders.append(("finish_cancel", dispatch, call_id, seconds))

    def of_kind(self, kind: str) -> list[Any]:
        return [order[1:] for order in self.orders if order[0] == kind]

    def says(self, *news: reports.Report) -> None:
        for report in news:
            self._report(report)


class Executor(ModalExecutor):
    """With a database that is a few lists."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.events: list[tuple[Any, ...]] = []
        self.open_callbacks: list[str] = []
        self.returned: list[str] = []
        self.failed_tests: list[tuple[str, str]] = []

    def _make_dispatcher(self, deployed: Deployed, options: Options) -> Dispatcher:
        return RecordedDispatcher()

    @property
    def dispatcher(self) -> RecordedDispatcher:
        assert isinstance(self._dispatcher, RecordedDispatcher)
        return self._dispatcher


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    data = {"database": {"connection_string": DATABASE}, "workers": {"gpu": {"gpu": "A10G", "timeout": 7200}}}
    deployed = config.parse(data, source="config.yaml", environ={})
    monkeypatch.setenv("MODALFLOW_SETTINGS", json.dumps(deployed.to_settings()))
    monkeypatch.setenv("AIRFLOW__MODAL__ENVIRONMENT", "prod")
    monkeypatch.setenv("AIRFLOW__MODAL__SERVERLESS", "True")
    monkeypatch.setenv("AIRFLOW__MODAL__SILENT_AFTER", str(SILENT_AFTER))
    # There is no database here; what it contributes is among the integration tests.
    monkeypatch.setattr("airflow_provider_modal.executors.database.open_cancellations", lambda seconds: [])
    return monkeypatch


@pytest.fixture
def executor(settings: pytest.MonkeyPatch) -> Executor:
    executor = Executor(parallelism=4)
    executor.job_id = 7
    for name, instead in {
        "write_events": executor.events.extend,
        "open_callbacks": lambda: executor.open_callbacks,
        "return_callback": executor.returned.append,
        "fail_connection_test": lambda test_id, reason: executor.failed_tests.append((test_id, reason)),
    }.items():
        settings.setattr(f"airflow_provider_modal.executors.database.{name}", instead)
    executor.start()
    return executor


def workload(task_id: str = "t", **ti: Any) -> ExecuteTask:
    values: dict[str, Any] = {
        "id": uuid.uuid4(),
        "dag_id": "d",
        "task_id": task_id,
        "run_id": "r",
        "try_number": 1,
        "dag_version_id": uuid.uuid4(),
        "pool_slots": 1,
        "priority_weight": 1,
        "external_executor_id": str(uuid.uuid4()),
        **ti,
    }
    return ExecuteTask(
        ti=TaskInstanceDTO(**values),
        dag_rel_path=Path("dag.py"),
        bundle_info=BundleInfo(name="modal-volume", version="abc"),
        log_path="dag_id=d/attempt=1.log",
        token="secret-token",
    )


def key(task_id: str = "t", try_number: int = 1) -> TaskInstanceKey:
    return TaskInstanceKey("d", task_id, "r", try_number, -1)


def queued(executor: Executor, *items: Any) -> list[Submission]:
    before = len(executor.dispatcher.of_kind("submit"))
    for item in items:
        executor.queue_workload(item, session=None)  # type: ignore[arg-type]
    executor.heartbeat()
    return [order[0] for order in executor.dispatcher.of_kind("submit")[before:]]


def ended(dispatch: str, outcome: wire.Outcome = "done", reason: str | None = None) -> reports.Ended:
    return reports.Ended(dispatch, outcome, reason)


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


def callback() -> ExecuteCallback:
    data = {"path": "alerts.late", "kwargs": {"text": "late"}}
    method = CallbackFetchMethod.IMPORT_PATH
    return ExecuteCallback(
        callback=CallbackDTO(id=str(uuid.uuid4()), fetch_method=method, data=data),
        dag_rel_path=Path("dag.py"),
        bundle_info=BundleInfo(name="modal-volume", version="abc"),
        log_path="executor_callbacks/d/r/c",
        token="secret-token",
    )


def connection_test(queue: str | None = None) -> workloads.TestConnection:
    return workloads.TestConnection.make(
        connection_test_id=uuid.uuid4(), connection_id="c", timeout=30, queue=queue
    )


def test_a_callback_is_dispatched_under_its_own_id(executor: Executor) -> None:
    item = callback()
    [submission] = queued(executor, item)
    call = wire.TaskCall.from_wire(submission.call.to_wire())
    assert (call.kind, call.dispatch, call.key) == ("callback", item.callback.id, None)
    assert (submission.function, call.log_path) == (names.EXECUTE_TASK, "executor_callbacks/d/r/c")
    assert ExecuteCallback.model_validate_json(call.workload).callback == item.callback
    executor.dispatcher.says(reports.Submitted(call.dispatch, "fc-1"))
    executor.sync()
    # It has no place for the call's id.
    assert executor.get_event_buffer() == {} and executor.running == {item.key}
    executor.dispatcher.says(reports.Ended(call.dispatch, "failed", "it raised", "callback"))
    executor.sync()
    assert executor.get_event_buffer() == {item.key: (CallbackState.FAILED, "it raised")}
    assert executor.slots_occupied == 0


def test_callbacks_go_before_tasks(executor: Executor) -> None:
    late, *tasks = callback(), *(workload(f"t{n}") for n in range(5))
    submissions = queued(executor, *tasks, late)
    assert len(submissions) == 4 and submissions[0].call.kind == "callback"


def test_the_end_of_a_callback_that_another_scheduler_began_is_told(executor: Executor) -> None:
    done, failed, copy = (str(uuid.uuid4()) for _ in range(3))
    executor.dispatcher.says(
        reports.Ended(done, "done", None, "callback"),
        reports.Ended(failed, "failed", "it raised", "callback"),
        reports.Ended(copy, "obsolete", "another one runs it", "callback"),
        reports.Ended(str(uuid.uuid4()), "done", None, "connection_test"),
    )
    executor.sync()
    assert executor.get_event_buffer() == {
        CallbackKey(done): (CallbackState.SUCCESS, None),
        CallbackKey(failed): (CallbackState.FAILED, "it raised"),
    }
    assert executor.counters["foreign_events"] == 2


def test_callbacks_under_way_are_adopted_and_what_never_reached_modal_is_returned(
    executor: Executor,
) -> None:
    alive, ended, never, lost = executor.open_callbacks = [str(uuid.uuid4()) for _ in range(4)]
    executor.sync()
    assert [order[0] for order in executor.dispatcher.of_kind("ask")] == executor.open_callbacks
    assert executor.slots_occupied == 4 and executor.busy
    executor.dispatcher.says(
        reports.Alive(alive),
        reports.Ended(ended, "done", None),
        reports.Unknown(never, "it never reached Modal", lost=False),
        reports.Unknown(lost, "Modal has no function call fc-1"),
    )
    executor.sync()
    events = executor.get_event_buffer()
    assert events.pop(CallbackKey(ended)) == (CallbackState.SUCCESS, None)
    state, reason = events.pop(CallbackKey(lost))
    assert state == CallbackState.FAILED and "fc-1" in reason
    assert not events and executor.returned == [never]
    assert executor.running == {CallbackKey(alive)}


def test_a_connection_test_runs_in_its_queue_and_frees_its_slot(executor: Executor) -> None:
    item = connection_test(queue="gpu")
    [submission] = queued(executor, item)
    assert (submission.function, submission.call.kind) == ("execute_task_gpu", "connection_test")
    executor.dispatcher.says(reports.Ended(submission.call.dispatch, "done", None, "connection_test"))
    executor.sync()
    assert executor.slots_occupied == 0 and executor.failed_tests == []


def test_why_a_connection_could_not_be_tested_is_written(executor: Executor) -> None:
    wrong, unlucky = connection_test(queue="gqu"), connection_test()
    [submission] = queued(executor, wrong, unlucky)
    executor.dispatcher.says(reports.NotSubmitted(submission.call.dispatch, "not deployed"))
    executor.sync()
    (of_wrong, told), (of_unlucky, said) = executor.failed_tests
    assert (of_wrong, of_unlucky) == (wrong.key.id, unlucky.key.id)
    assert "did you mean 'gpu'" in told and said == "not deployed"
    assert executor.slots_occupied == 0


def test_a_second_delivery_of_a_callback_does_not_end_the_first(executor: Executor) -> None:
    item = callback()
    [submission] = queued(executor, item)
    dispatch = submission.call.dispatch
    executor.dispatcher.says(reports.Ended(dispatch, "obsolete", "another one runs it", "callback"))
    executor.sync()
    assert executor.get_event_buffer() == {} and executor.running == {item.key}
    executor.dispatcher.says(reports.Ended(dispatch, "done", None, "callback"))
    executor.sync()
    assert executor.get_event_buffer() == {item.key: (CallbackState.SUCCESS, None)}


def test_a_database_that_is_away_keeps_no_slot(executor: Executor, settings: pytest.MonkeyPatch) -> None:
    def away(test_id: str, reason: str) -> None:
        raise OSError("the database is away")

    settings.setattr("airflow_provider_modal.executors.database.fail_connection_test", away)
    wrong, unlucky = connection_test(queue="gqu"), connection_test()
    [submission] = queued(executor, wrong, unlucky)
    executor.dispatcher.says(reports.NotSubmitted(submission.call.dispatch, "not deployed"))
    executor.sync()
    assert executor.slots_occupied == 0 and len(executor.ledger) == 0


def test_a_connection_test_that_airflow_gave_up_is_cancelled(executor: Executor) -> None:
    item = connection_test()
    [submission] = queued(executor, item)
    executor.fail_connection_test(item.key)
    assert executor.dispatcher.of_kind("cancel") == [(submission.call.dispatch, None)]
    assert executor.slots_occupied == 0 and executor.events == []


def test_the_call_id_is_told_once_modal_has_it(executor: Executor) -> None:
    [submission] = queued(executor, workload())
    dispatch = submission.call.dispatch
    executor.dispatcher.says(reports.Submitted(dispatch, "fc-1"))
    assert executor.wait_for_event(0)
    executor.sync()
    assert executor.get_event_buffer() == {key(): (TaskInstanceState.QUEUED, f"{dispatch}/fc-1")}
    assert executor.running == {key()}
    assert not executor.busy and not executor.wait_for_event(0)


def test_no_live_event_is_made_without_an_id(executor: Executor) -> None:
    queued(executor, workload())
    assert executor.get_event_buffer() == {}


@pytest.mark.parametrize(
    ("outcome", "reason", "event"),
    [
        ("done", None, (TaskInstanceState.SUCCESS, None)),
        ("failed", "out of memory", (TaskInstanceState.FAILED, "out of memory")),
    ],
)
def test_an_end_frees_the_slot_and_is_told(
    executor: Executor, outcome: wire.Outcome, reason: str | None, event: tuple[Any, Any]
) -> None:
    [submission] = queued(executor, workload())
    executor.dispatcher.says(ended(submission.call.dispatch, outcome, reason))
    executor.sync()
    assert executor.get_event_buffer() == {key(): event}
    assert (executor.slots_occupied, len(executor.ledger)) == (0, 0)
    # Ends that Airflow is told by us must not cancel what is over.
    assert executor.dispatcher.of_kind("cancel") == []


def test_final_submit_errors_fail_the_task(executor: Executor) -> None:
    [submission] = queued(executor, workload())
    executor.dispatcher.says(reports.NotSubmitted(submission.call.dispatch, "not deployed"))
    executor.sync()
    assert executor.get_event_buffer() == {key(): (TaskInstanceState.FAILED, "not deployed")}
    assert executor.slots_occupied == 0


def test_events_of_other_dispatches_are_dropped_and_counted(executor: Executor) -> None:
    [submission] = queued(executor, workload())
    executor.dispatcher.says(ended("somebody-else"))
    executor.sync()
    assert executor.get_event_buffer() == {}
    assert executor.counters["foreign_events"] == 1
    executor.dispatcher.says(
        ended(submission.call.dispatch), ended(submission.call.dispatch, "failed", "late")
    )
    executor.sync()
    assert executor.get_event_buffer() == {key(): (TaskInstanceState.SUCCESS, None)}
    assert executor.counters["foreign_events"] == 2


def test_a_second_dispatch_of_the_same_try_outlives_the_end_of_the_first(executor: Executor) -> None:
    # A deferred task comes back under the same key, possibly before the end of its first half is heard of.
    [first] = queued(executor, workload())
    [second] = queued(executor, workload())
    executor.dispatcher.says(ended(first.call.dispatch))
    executor.sync()
    assert executor.get_event_buffer() == {}
    assert executor.running == {key()}
    executor.dispatcher.says(ended(second.call.dispatch))
    executor.sync()
    assert executor.slots_occupied == 0
    assert list(executor.get_event_buffer()) == [key()]


def test_parallelism_holds_and_the_rest_waits(executor: Executor) -> None:
    submissions = queued(executor, *(workload(f"t{n}") for n in range(6)))
    assert (len(submissions), len(executor.queued_tasks), executor.slots_available) == (4, 2, -2)
    executor.dispatcher.says(*(ended(submission.call.dispatch) for submission in submissions))
    executor.sync()
    assert len(queued(executor)) == 2


def test_a_revoked_task_is_forgotten_and_cancelled_without_an_event(executor: Executor) -> None:
    [submission] = queued(executor, workload())
    dispatch = submission.call.dispatch
    executor.dispatcher.says(reports.Submitted(dispatch, "fc-1"))
    executor.sync()
    executor.get_event_buffer()
    executor.revoke_task(ti=task_instance(external_executor_id=f"{dispatch}/fc-1"))
    executor.dispatcher.says(ended(dispatch, "failed", "cancelled"))
    executor.sync()
    assert executor.dispatcher.of_kind("cancel") == [(dispatch, "fc-1")]
    assert executor.get_event_buffer() == {}
    executor.dispatcher.says(reports.Cancelled(dispatch), reports.Cancelled("somebody-else"))
    executor.sync()
    assert [(event, of, text.partition(":")[0]) for event, of, text in executor.events] == [
        ("modal call cancelled", key(), f"{dispatch}/fc-1"),
        ("modal call ended", key(), dispatch),
    ]
    assert executor.slots_occupied == 0


def test_a_revoked_task_that_is_not_under_way_is_cancelled_by_its_id(executor: Executor) -> None:
    executor.revoke_task(ti=task_instance(external_executor_id="d1/fc-9"))
    assert executor.dispatcher.of_kind("cancel") == [("d1", "fc-9")]


def test_a_task_that_the_scheduler_gave_up_is_cancelled(executor: Executor) -> None:
    [submission] = queued(executor, workload())
    executor.change_state(key(), TaskInstanceState.FAILED)  # as for a missing heartbeat
    assert executor.dispatcher.of_kind("cancel") == [(submission.call.dispatch, None)]
    assert (executor.slots_occupied, len(executor.ledger)) == (0, 0)


def task_instance(task_id: str = "t", **values: Any) -> Any:
    """The part of a TaskInstance row that the executor reads."""
    fields = {
        "key": key(task_id),
        "external_executor_id": None,
        "last_heartbeat_at": None,
        "queued_dttm": None,
        "queued_by_job_id": 3,
        **values,
    }
    return SimpleNamespace(**fields)


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    # The rows of these tests are not in a database; tests with real rows are among the integration tests.
    monkeypatch.setattr("airflow_provider_modal.executors.database.object_session", lambda ti: None)


@pytest.mark.usefixtures("no_session")
def test_adoption_takes_what_has_a_dispatch_and_asks_about_it(executor: Executor) -> None:
    fresh = task_instance(
        "fresh", external_executor_id="d1/fc-1", last_heartbeat_at=datetime.now(timezone.utc)
    )
    stale = task_instance("stale", external_executor_id="d2/fc-2")
    bare = task_instance("bare", external_executor_id="d3", queued_dttm=datetime.now(timezone.utc))
    nothing = task_instance("nothing")
    late = datetime.now(timezone.utc) - timedelta(seconds=20)
    missing = task_instance("missing", external_executor_id="d4/fc-4", last_heartbeat_at=late)
    assert executor.try_adopt_task_instances([fresh, stale, bare, nothing, missing]) == [nothing]
    assert executor.running == {key("fresh"), key("stale"), key("bare"), key("missing")}
    assert executor.dispatcher.of_kind("ask") == [
        ("d2", "fc-2", True),
        ("d3", None, False),
        ("d4", "fc-4", False),
    ]
    assert executor.dispatcher.of_kind("listen") == []
    executor.dispatcher.says(
        reports.Alive("d4"), ended("d2"), reports.Submitted("d3", "fc-3"), reports.Alive("d3")
    )
    executor.sync()
    assert executor.get_event_buffer() == {
        key("stale"): (TaskInstanceState.SUCCESS, None),
        key("bare"): (TaskInstanceState.QUEUED, "d3/fc-3"),
    }
    assert executor.running == {key("fresh"), key("bare"), key("missing")}
    assert not executor.busy


@pytest.mark.usefixtures("no_session")
def test_elsewhere_the_former_schedulers_partition_is_drained_too(settings: pytest.MonkeyPatch) -> None:
    settings.setenv("AIRFLOW__MODAL__SERVERLESS", "False")
    executor = Executor(parallelism=4)
    executor.job_id = 8
    executor.start()
    executor.try_adopt_task_instances([task_instance(external_executor_id="d1/fc-1", queued_by_job_id=3)])
    executor.sync()
    assert executor.dispatcher.of_kind("listen") == [("job-3",), ("job-8",)]


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
    for external_id, told in [("d1/fc-1", "fc-1"), ("d1", "not known yet"), (None, "not known yet")]:
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

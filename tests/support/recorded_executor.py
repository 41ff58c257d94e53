"""A ModalExecutor whose dispatcher only takes down its orders, and what to queue there."""

from __future__ import annotations

import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow.executors import workloads
from airflow.executors.workloads import ExecuteCallback, ExecuteTask
from airflow.executors.workloads.base import BundleInfo
from airflow.executors.workloads.callback import CallbackDTO, CallbackFetchMethod
from airflow.executors.workloads.task import TaskInstanceDTO
from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_provider_modal import wire
from airflow_provider_modal.executors import ModalExecutor, reports
from airflow_provider_modal.executors.deployed import Deployed
from airflow_provider_modal.executors.dispatcher import Dispatcher, Submission
from airflow_provider_modal.executors.options import Options
from airflow_provider_modal.executors.questions import Question
from airflow_provider_modal.executors.task_events import TaskEvent


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

    def ask(self, question: Question) -> None:
        self.orders.append(("ask", question.dispatch, question.call_id, question.modal))

    def take_back(self, dispatch: str, call_id: str, why: str) -> None:
        self.orders.append(("take_back", dispatch, call_id, why))

    def cancel(self, dispatch: str, call_id: str | None, why: str) -> None:
        assert why
        self.orders.append(("cancel", dispatch, call_id))

    def finish_cancel(self, dispatch: str, call_id: str | None, seconds: float) -> None:
        self.orders.append(("finish_cancel", dispatch, call_id, seconds))

    def explain(self, key: wire.TaskKey, dispatch: str, reason: str) -> None:
        self.orders.append(("explain", key, dispatch, reason))

    def of_kind(self, kind: str) -> list[Any]:
        return [order[1:] for order in self.orders if order[0] == kind]

    def says(self, *news: reports.Report) -> None:
        for report in news:
            self._report(report)


class Executor(ModalExecutor):
    """With a database that is a few lists."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.written: list[TaskEvent] = []
        self._task_events._write = self.written.extend
        self.open_callbacks: list[str] = []
        self.returned: list[str] = []
        self.failed_tests: list[tuple[str, str]] = []

    def _make_dispatcher(self, deployed: Deployed, options: Options) -> Dispatcher:
        return RecordedDispatcher()

    @property
    def events(self) -> list[tuple[str, TaskInstanceKey, str]]:
        """What was written into Airflow's event log so far: event, task instance, text."""
        assert self._task_events.flush(30)
        return [(event.event, event.key, event.text) for event in self.written]

    @property
    def dispatcher(self) -> RecordedDispatcher:
        assert isinstance(self._dispatcher, RecordedDispatcher)
        return self._dispatcher


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


def task_instance(task_id: str = "t", **values: Any) -> Any:
    """The part of a TaskInstance row that the executor reads."""
    fields = {
        "key": key(task_id),
        "external_executor_id": None,
        "last_heartbeat_at": None,
        "queued_dttm": None,
        "queued_by_job_id": 3,
        "queue": "default",
        **values,
    }
    return SimpleNamespace(**fields)

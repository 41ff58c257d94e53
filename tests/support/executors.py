"""An executor for tests of scheduling: it records what it is given and plays the worker itself.

It writes the state that a worker's supervisor would write and reports the end; tasks named ``fails_once``
fail at their first try, tasks named ``lasts...`` stay running, and the id of the call of ``lasts_told_late``
is known only when the executor ends. As the provider's executor does, it adopts every task that has begun.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.executors.base_executor import BaseExecutor
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import func, update

from tests.support.airflow_children import RECORD


class RecordingExecutor(BaseExecutor):
    """Completes tasks without running them."""

    pre_assigns_external_executor_id = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._started: list[Any] = []
        self._late: dict[Any, Any] = {}

    def _process_workloads(self, workloads: Sequence[Any]) -> None:
        for workload in workloads:
            ti = workload.ti
            self.queued_tasks.pop(ti.key)
            self.running.add(ti.key)
            with Path(os.environ[RECORD]).open("a") as record:
                name = f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}/{ti.try_number}"
                record.write(json.dumps(name) + "\n")
            _write(ti.id, TaskInstanceState.RUNNING)
            told = (TaskInstanceState.QUEUED, f"call-of-{ti.task_id}")
            (self._late if ti.task_id == "lasts_told_late" else self.event_buffer)[ti.key] = told
            if not ti.task_id.startswith("lasts"):
                self._started.append(ti)

    def sync(self) -> None:
        """Report the end of what began before the last heartbeat."""
        started, self._started = self._started, []
        for ti in started:
            if ti.key in self.event_buffer:
                self._started.append(ti)
            elif ti.task_id == "fails_once" and ti.try_number == 1:
                self.fail(ti.key, "it fails once")
            else:
                _write(ti.id, TaskInstanceState.SUCCESS)
                self.success(ti.key)

    def wait_for_event(self, timeout: float) -> bool:
        """Return at once if there is something to report."""
        import time

        if not self._started:
            time.sleep(min(timeout, 0.05))
        return bool(self._started)

    @property
    def busy(self) -> bool:
        """Whether an end will be reported soon."""
        return bool(self._started)

    def try_adopt_task_instances(self, tis: Sequence[TaskInstance]) -> Sequence[TaskInstance]:
        """Adopt what has begun or has a call: what was only queued may never have been handed over."""
        begun = (TaskInstanceState.RUNNING, TaskInstanceState.RESTARTING)
        adopted = [
            ti for ti in tis if ti.state in begun or str(ti.external_executor_id).startswith("call-of-")
        ]
        self.running.update(ti.key for ti in adopted)
        return [ti for ti in tis if ti not in adopted]

    def revoke_task(self, *, ti: TaskInstance) -> None:
        """Forget a task that has waited too long."""
        self.running.discard(ti.key)

    def end(self) -> None:
        """End; tasks go on elsewhere."""
        self.event_buffer.update(self._late)


def _write(ti_id: Any, state: TaskInstanceState) -> None:
    with create_session() as session:
        values = {"state": state, "start_date": func.now()}
        if state == TaskInstanceState.SUCCESS:
            values = {"state": state, "end_date": func.now()}
        session.execute(update(TaskInstance).where(TaskInstance.id == ti_id).values(**values))

"""How does an Airflow workload become a task call?"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from airflow_provider_modal import wire

if TYPE_CHECKING:
    from airflow.executors.workloads import ExecuteTask


def task_call(
    workload: ExecuteTask, *, partition: str, timeout: float, wakes_scheduler: bool
) -> wire.TaskCall:
    """Return the message for ``execute_task``; the parameters are those of :class:`wire.TaskCall`."""
    key = workload.ti.key
    return wire.TaskCall(
        dispatch=dispatch_of(workload),
        kind="task",
        key=wire.TaskKey(key.dag_id, key.task_id, key.run_id, key.try_number, key.map_index),
        workload=workload.model_dump_json(),
        log_path=workload.log_path,
        partition=partition,
        timeout=timeout,
        wakes_scheduler=wakes_scheduler,
    )


def dispatch_of(workload: ExecuteTask) -> str:
    """Return the id that Airflow assigned with this transition to ``queued``, else a new one."""
    dispatch, call_id = wire.parse_external_executor_id(getattr(workload.ti, "external_executor_id", None))
    # With a call's id it is left over from the task instance's last dispatch: this Airflow assigns none.
    return dispatch if dispatch is not None and call_id is None else str(uuid.uuid4())

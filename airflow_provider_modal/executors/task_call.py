"""How does an Airflow workload become a task call?"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from airflow_provider_modal import wire
from airflow_provider_modal.executors.task_options import TaskOptions

if TYPE_CHECKING:
    from airflow.executors.workloads import ExecuteTask


def task_call(
    workload: ExecuteTask, options: TaskOptions, *, partition: str, timeout: float, wakes_scheduler: bool
) -> wire.TaskCall:
    """Return the message for ``execute_task``.

    :param options: what the task wants; the other parameters are those of :class:`wire.TaskCall`.
    :param timeout: the worker profile's, for a task that has none of its own.
    """
    key = workload.ti.key
    return wire.TaskCall(
        dispatch=dispatch_of(workload),
        kind="task",
        key=wire.TaskKey(key.dag_id, key.task_id, key.run_id, key.try_number, key.map_index),
        workload=workload.model_dump_json(),
        log_path=workload.log_path,
        partition=partition,
        timeout=options.timeout or timeout,
        env=dict(options.env),
        on_container_loss=options.on_container_loss,
        memory=options.function.memory[1] if options.function.memory else None,
        log_lines=options.log_lines,
        wakes_scheduler=wakes_scheduler,
    )


def dispatch_of(workload: ExecuteTask) -> str:
    """Return the id that Airflow assigned with this transition to ``queued``, else a new one."""
    dispatch, call_id = wire.parse_external_executor_id(getattr(workload.ti, "external_executor_id", None))
    # With a call's id it is left over from the task instance's last dispatch: this Airflow assigns none.
    return dispatch if dispatch is not None and call_id is None else str(uuid.uuid4())

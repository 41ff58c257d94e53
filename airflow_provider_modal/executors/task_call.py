"""How does an Airflow workload become a task call?"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from airflow.configuration import conf
from airflow.executors import workloads

from airflow_provider_modal import names, wire
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.executors import task_options
from airflow_provider_modal.executors.deployed import Deployed
from airflow_provider_modal.executors.dispatcher import Submission
from airflow_provider_modal.executors.options import Options

if TYPE_CHECKING:
    from airflow.executors.workloads import ExecuteTask, ExecutorWorkload


def submission(
    workload: ExecutorWorkload, deployed: Deployed, options: Options, partition: str
) -> Submission:
    """Return the order to hand a workload to Modal.

    :param partition: of the event Queue, for the end of it.
    :raises ConfigError: its queue or ``executor_config`` asks for what can't be had.
    """
    chosen = profile(workload)
    deployed.check(chosen)
    # Only tasks have options of their own.
    wanted = task_options.read(getattr(getattr(workload, "ti", None), "executor_config", None))
    function, function_options = deployed.function(chosen, wanted)
    dispatch, kind, key = _identity(workload)
    call = wire.TaskCall(
        dispatch=dispatch,
        kind=kind,
        key=key,
        workload=workload.model_dump_json(),
        log_path=getattr(workload, "log_path", None),
        partition=partition,
        timeout=wanted.timeout or deployed.timeout(chosen),
        env=dict(wanted.env),
        requirements=list(wanted.requirements),
        on_container_loss=wanted.on_container_loss,
        memory=wanted.function.memory[1] if wanted.function.memory else None,
        log_lines=wanted.log_lines,
        wakes_scheduler=options.serverless,
        lost_after=options.container_lost_after,
    )
    return Submission(call, function, options.submit_deadline, function_options)


def profile(workload: ExecutorWorkload) -> str:
    """Return the worker profile that a workload is for."""
    # A task names its queue, a connection test, too; callbacks don't.
    return _profile(getattr(getattr(workload, "ti", workload), "queue", None))


def base_function(queue: str | None) -> str | None:
    """Return the function that runs the tasks of a queue, before any options; None if there can't be one."""
    try:
        return names.task_function(_profile(queue))
    except ConfigError:
        return None


def _profile(queue: str | None) -> str:
    default_queue = conf.get("operators", "default_queue", fallback=names.DEFAULT_PROFILE)
    return task_options.profile_of_queue(queue, default_queue)


def _identity(workload: ExecutorWorkload) -> tuple[str, wire.Kind, wire.TaskKey | None]:
    if isinstance(workload, workloads.ExecuteTask):
        key = workload.ti.key
        task = wire.TaskKey(key.dag_id, key.task_id, key.run_id, key.try_number, key.map_index)
        return _dispatch_of(workload), "task", task
    if isinstance(workload, workloads.ExecuteCallback):
        return str(workload.callback.id), "callback", None
    return str(workload.connection_test_id), "connection_test", None


def _dispatch_of(workload: ExecuteTask) -> str:
    """Return the id that Airflow assigned with this transition to ``queued``, else a new one."""
    dispatch, call_id = wire.parse_external_executor_id(getattr(workload.ti, "external_executor_id", None))
    # With a call's id it is left over from the task instance's last dispatch: this Airflow assigns none.
    return dispatch if dispatch is not None and call_id is None else str(uuid.uuid4())

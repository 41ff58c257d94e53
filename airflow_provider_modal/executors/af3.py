"""What does the executor's base class look like in this Airflow 3?

Before 3.4 it has one queue and one flag per kind of workload; since then it has a queue per ``WorkloadType``
and a set of the supported ones, and warns about the former names.
"""

from __future__ import annotations

from typing import Any

from airflow.executors import workloads
from airflow.executors.base_executor import BaseExecutor

KINDS = frozenset({"ExecuteTask", "ExecuteCallback", "TestConnection"})
"""What ``task_call`` can make a function call of, by Airflow's names."""

_WorkloadType: Any = getattr(workloads, "WorkloadType", None)


class Airflow3Executor(BaseExecutor):
    """``BaseExecutor`` with one way to what Airflow's versions call differently."""

    if _WorkloadType is None:
        supports_callbacks = True
        supports_connection_test = True
    else:
        supported_workload_types = frozenset(kind for kind in _WorkloadType if kind.value in KINDS)

    def waiting_workloads(self) -> list[dict[Any, Any]]:
        """Return Airflow's own queues, which hold what is not handed to Modal yet, by key."""
        queues: dict[Any, dict[Any, Any]] | None = getattr(self, "executor_queues", None)
        if queues is not None:
            return list(queues.values())
        return [self.queued_tasks, self.queued_callbacks, self.queued_connection_tests]

    def is_waiting(self, key: Any) -> bool:
        """Return whether a workload waits in one of Airflow's queues."""
        return any(key in queue for queue in self.waiting_workloads())

    def take_out(self, key: Any) -> None:
        """Take a workload out of Airflow's queues."""
        for queue in self.waiting_workloads():
            queue.pop(key, None)

"""What do people learn of the executor's work?

At a task instance: events, and in its log the reason of a failure. Of the executor as a whole: metrics. Used
on the scheduler's thread; nothing here waits for anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_provider_modal import wire
from airflow_provider_modal.executors import task_events
from airflow_provider_modal.executors.metrics import Metrics
from airflow_provider_modal.executors.task_events import TaskEvents


class Telling:
    """Tells of the work of one executor.

    :param explain: writes a reason into a try's log; see ``Dispatcher.explain``.
    """

    def __init__(
        self, events: TaskEvents, metrics: Metrics, explain: Callable[[wire.TaskKey, str, str], None]
    ) -> None:
        self._events = events
        self._metrics = metrics
        self._explain = explain

    def submitted(self, key: Any, call_id: str) -> None:
        """Tell that Modal has a workload's function call."""
        self._events.note(task_events.SUBMITTED_EVENT, key, f"{task_events.SUBMITTED_TEXT}{call_id}")

    def delivered_again(self, key: Any, lost_container: str) -> None:
        """Tell that a function call had to be taken by a second container."""
        self._events.note(
            task_events.REDELIVERED_EVENT,
            key,
            f"container {lost_container} had the function call before and was lost",
        )

    def failed(self, key: Any, reason: str, *, dispatch: str | None = None, in_log: bool = False) -> None:
        """Tell why a workload fails.

        :param dispatch: the one that failed; None if it got none.
        :param in_log: the reason is in the task's log already.
        """
        self._events.note(task_events.FAILED_EVENT, key, reason)
        if isinstance(key, TaskInstanceKey) and not in_log:
            of = wire.TaskKey(key.dag_id, key.task_id, key.run_id, key.try_number, key.map_index)
            self._explain(of, dispatch or "none", reason)

    def took(self, reports: int, in_flight: int) -> None:
        """Tell what one scheduler loop took from the dispatcher.

        :param in_flight: dispatches that are under way after that.
        """
        if reports:
            self._metrics.gauge("events_per_drain", reports)
            self._metrics.gauge("in_flight", in_flight)

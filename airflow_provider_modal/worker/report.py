"""Who is told that a dispatch ended?

Three places, in this order, each with a purpose of its own: ``result:{dispatch}`` in the state Dict for a
scheduler that is not there now, the event Queue for the one that is, and a wake-up for a serverless one.
All of it is a hint: Airflow's database has the task's state already. So nothing here fails a task.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from typing import TYPE_CHECKING

from airflow_provider_modal import names, wakeup
from airflow_provider_modal.wire import Completion
from airflow_provider_modal.worker.patience import GaveUpError, patiently

if TYPE_CHECKING:
    import modal

log = logging.getLogger(__name__)


def report(
    resources: names.ResourceNames,
    state: modal.Dict,
    events: modal.Queue,
    completion: Completion,
    *,
    partition: str,
    wakes_scheduler: bool,
) -> None:
    """Tell of a dispatch's end.

    :param partition: of the event Queue.
    :param wakes_scheduler: ask for a run of the serverless scheduler.
    """
    message = completion.to_wire()
    key = names.result_key(completion.dispatch)
    what = completion.key.task_id if completion.key else completion.kind
    if completion.outcome != "obsolete":
        # An obsolete copy's end is not the dispatch's, and must not replace that one's result.
        _try("write the dispatch's result", lambda: state.put(key, message))
    _try("send the completion event", lambda: _send(events, message, partition))
    if wakes_scheduler:
        _try("wake the scheduler", lambda: wakeup.request_run(resources, f"end of {what}"))


def _try(what: str, call: Callable[[], object]) -> None:
    try:
        patiently(what, call)
    except GaveUpError as error:
        log.warning("%s; the scheduler finds out by itself, later", error)


def _send(events: modal.Queue, message: dict[str, object], partition: str) -> None:
    try:
        events.put(message, block=False, partition=partition)
    except queue.Full:
        log.warning(
            "partition %s of the event Queue is full: nobody reads it; the Dict has the result", partition
        )

"""What is different about workloads that are no task: callbacks of deadlines, and tests of connections?

Airflow keeps no id of a function call with them and never has them adopted. A callback's own id is that of
its dispatch, so its end is understood by any scheduler; the result of a connection test comes from the
worker, and of the executor's events about it Airflow reads none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from airflow.executors.executor_loader import ExecutorLoader
from airflow.models.callback import CallbackKey
from airflow.models.connection_test import ConnectionTestKey

from airflow_provider_modal.executors import database, reports

log = logging.getLogger(__name__)


def have_one_executor() -> bool:
    """Whether this Airflow has a single executor: with several, nobody knows whose callback it is."""
    return len(ExecutorLoader.get_executor_names(validate_teams=False)) == 1


def callbacks_left_behind(is_known: Callable[[CallbackKey], bool]) -> list[CallbackKey]:
    """Return the callbacks that a scheduler which is gone had taken. They may be other executors', too.

    :param is_known: tells which ones are under way here.
    """
    try:
        found = [CallbackKey(callback_id) for callback_id in database.open_callbacks()]
    except Exception as error:
        log.warning("the database does not tell which callbacks are under way: %s", error)
        return []
    return [key for key in found if not is_known(key)]


def callback_of(report: reports.Ended) -> CallbackKey | None:
    """Return which callback ended, of a report that nobody here waits for; None for a copy or no callback."""
    return (
        CallbackKey(report.dispatch) if report.kind == "callback" and report.outcome != "obsolete" else None
    )


def settle(key: Any, why: str, *, lost: bool) -> str | None:
    """Hand a workload back that nobody runs, or return why it has failed.

    Only a callback that Modal never took runs again: whether another one's user code has run, nobody knows.
    """
    if lost or not isinstance(key, CallbackKey):
        return f"it was handed to Modal and did not end there: {why}"
    database.return_callback(key.id)
    return None


def note_failure(key: Any, reason: str) -> None:
    """Write a failure that Airflow would not read from the executor's events."""
    if not isinstance(key, ConnectionTestKey):
        return
    try:
        database.fail_connection_test(key.id, reason)
    except Exception as error:
        # Airflow ends the test after its time, with a reason of its own; the slot must be free all the same.
        log.warning("why connection test %s failed is not written (%s): %s", key.id, error, reason)

"""What does Airflow's database say about the tries of all tasks, and what is left at rest?"""

from __future__ import annotations

import time
from collections.abc import Sequence

from airflow_provider_modal.control.runs import REASON_EVENTS
from chaos.history import Task, Try
from chaos.storm import WORKER
from tools.hybrid import Hybrid, Scheduler

_TRIES = """
SELECT dag_id, run_id, task_id, map_index, try_number, state FROM task_instance
UNION ALL
SELECT dag_id, run_id, task_id, map_index, try_number, state FROM task_instance_history
"""
_REASONS = """
SELECT event, dag_id, run_id, task_id, coalesce(map_index, -1), try_number, extra FROM log
WHERE event IN %s ORDER BY dttm
"""
_PARAGRAPH = "state mismatch"
_EXTRA = "Extra info: "


def tries(airflow: Hybrid) -> list[Try]:
    """Return all tries of all tasks."""
    reasons: dict[tuple[object, ...], str] = {}
    for event, *key, extra in airflow.sql(_REASONS, REASON_EVENTS):
        # A paragraph about states, in which what the executor said is a reason and nothing else is.
        if event != _PARAGRAPH or _EXTRA in extra:
            reasons[tuple(key)] = str(extra or "").rpartition(_EXTRA)[2].strip()
    found: dict[tuple[Task, int], Try] = {}
    for dag_id, run_id, task_id, map_index, number, state in airflow.sql(_TRIES):
        task = (dag_id, run_id, task_id, map_index)
        # The current row comes first; the history may have the same try once more.
        found.setdefault((task, number), Try(task, number, state, reasons.get((*task, number))))
    return list(found.values())


def unfinished(airflow: Hybrid) -> int:
    """Return how many DAG runs have not ended."""
    ((count,),) = airflow.sql("SELECT count(*) FROM dag_run WHERE state NOT IN ('success', 'failed')")
    return int(count)


def leaks(airflow: Hybrid, schedulers: Sequence[Scheduler], patience: float) -> list[str]:
    """Return what is still held although nothing runs, a sentence each.

    :param patience: seconds for everything to come to rest.
    """
    deadline = time.monotonic() + patience
    while (found := _held(airflow, schedulers)) and time.monotonic() < deadline:
        time.sleep(1)
    return found


def _held(airflow: Hybrid, schedulers: Sequence[Scheduler]) -> list[str]:
    found = []
    for scheduler in schedulers:
        if slots := scheduler.slots():
            found.append(f"{scheduler.log_path.stem}: {slots} slots are taken")
    for row in airflow.server.control("status")["functions"]:
        if row["function_name"] == WORKER and (row["queued"] or row["running"]):
            found.append(f"Modal: {row['queued']} inputs wait and {row['running']} run")
    ((held,),) = airflow.sql("SELECT count(*) FROM task_instance WHERE state IN ('queued', 'running')")
    if held:
        found.append(f"database: {held} task instances are queued or running")
    return found

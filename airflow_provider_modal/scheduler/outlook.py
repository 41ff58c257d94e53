"""What does Airflow's database show after a scheduler loop that queued nothing and heard nothing?

An idle loop alone proves little: a loop looks at a bounded number of runs, and one that marks an empty task
as done or skips a branch counts as idle although the next one finds the consequences.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from airflow_provider_modal.scheduler.bounded import Outlook

_STATE = text("""
    WITH live AS (
        SELECT r.dag_id, r.run_id, r.last_scheduling_decision
          FROM dag_run r JOIN dag d ON d.dag_id = r.dag_id
         WHERE r.state = 'running' AND NOT d.is_paused AND NOT d.is_stale AND r.run_after <= :now)
    SELECT EXISTS (SELECT 1 FROM task_instance t JOIN live l ON l.dag_id = t.dag_id AND l.run_id = t.run_id
                    WHERE t.updated_at >= :began AND t.state IS DISTINCT FROM 'running')
        OR EXISTS (SELECT 1 FROM dag_run
                    WHERE last_scheduling_decision >= :began AND state IN ('success', 'failed')) AS moved,
           (SELECT count(*) FROM live
             WHERE last_scheduling_decision IS NULL OR last_scheduling_decision < :since)
         + (SELECT count(*) FROM dag
             WHERE next_dagrun_create_after <= :began AND NOT is_paused AND NOT is_stale
               AND NOT has_import_errors AND NOT exceeds_max_non_backfill) AS possible,
           LEAST((SELECT min(next_dagrun_create_after) FROM dag
                   WHERE next_dagrun_create_after > :began AND NOT is_paused AND NOT is_stale
                     AND NOT has_import_errors AND NOT exceeds_max_non_backfill),
                 (SELECT min(r.run_after) FROM dag_run r JOIN dag d ON d.dag_id = r.dag_id
                   WHERE r.state IN ('queued', 'running') AND r.run_after > :began
                     AND NOT d.is_paused AND NOT d.is_stale)) AS next_at,
           EXISTS (SELECT 1 FROM task_instance t JOIN live l ON l.dag_id = t.dag_id AND l.run_id = t.run_id
                    WHERE t.state IN ('up_for_retry', 'up_for_reschedule')) AS waiting
""")
_RESCHEDULED = text("""
    SELECT min(latest) FROM (
        SELECT max(s.reschedule_date) AS latest
          FROM task_instance t
          JOIN dag_run r ON r.dag_id = t.dag_id AND r.run_id = t.run_id AND r.state = 'running'
          JOIN task_reschedule s ON s.ti_id = t.id
         WHERE t.state = 'up_for_reschedule' GROUP BY t.id) AS per_task
     WHERE latest > :began
""")


def look(
    session: Session,
    *,
    now: datetime,
    began: datetime,
    since: datetime,
    retries: Callable[[Session, datetime], datetime | None],
) -> Outlook:
    """Return what could move.

    :param now: the current time.
    :param began: when the idle loop began.
    :param since: every active run must have been looked at after this: when the last activity ended.
    :param retries: tells when, after ``began``, the next retry is due; Airflow computes that in Python.
    """
    state: Any = session.execute(_STATE, {"now": now, "began": began, "since": since}).one()
    times = [state.next_at]
    if state.waiting:
        times += [session.scalar(_RESCHEDULED, {"began": began}), retries(session, began)]
    known = [time.timestamp() for time in times if time is not None]
    return Outlook(moved=state.moved, possible=state.possible, next_at=min(known, default=None))


def deferred(session: Session) -> int:
    """Return how many task instances wait for a trigger."""
    return int(session.scalar(text("SELECT count(*) FROM task_instance WHERE state = 'deferred'")) or 0)

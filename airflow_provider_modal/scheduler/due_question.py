"""What is a question of the due-check, and what do several of them ask in the same way?

Columns that came with later releases are read with ``to_jsonb``, which has nothing to say about a column that
is not there; ``due_script`` leaves out questions whose tables are not there.
"""

from __future__ import annotations

from dataclasses import dataclass

LIVE = """
    FROM dag_run r JOIN dag d ON d.dag_id = r.dag_id
    WHERE r.state = 'running' AND NOT d.is_paused AND NOT d.is_stale AND r.run_after <= now()
      AND EXISTS (SELECT 1 FROM serialized_dag s WHERE s.dag_id = r.dag_id)
"""
"""The DAG runs (``r``) that Airflow looks at in every loop; it can do nothing about a DAG that it lacks."""
SETTLED = """coalesce(t.state, '') NOT IN (
    'running', 'queued', 'restarting', 'deferred', 'scheduled', 'awaiting_input')"""
"""Condition: others may be able to go on because of this task instance (``t``), or itself."""
OF_RUN = "t.dag_id = r.dag_id AND t.run_id = r.run_id"
AT_LIMIT = "coalesce((to_jsonb(d) ->> 'exceeds_max_non_backfill')::boolean, false)"
"""Condition: the DAG (``d``) counts as one that has ``max_active_runs``."""


@dataclass(frozen=True)
class Question:
    """One question.

    :param reason: what to say when the answer is yes.
    :param tables: asked only where these tables exist.
    :param query: returns one row: ``due``; ``at``, when the clock alone makes it due, or null; ``rows``,
        what Python has to look at (see ``due_rules``), or null.
    """

    reason: str
    tables: tuple[str, ...]
    query: str

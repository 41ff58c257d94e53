"""What would a full scheduler run change? One question per duty of Airflow's scheduler, in SQL."""

from __future__ import annotations

from airflow_provider_modal.scheduler import due_moves, due_upkeep
from airflow_provider_modal.scheduler.due_moves import RETRIES
from airflow_provider_modal.scheduler.due_question import Question
from airflow_provider_modal.scheduler.due_upkeep import ASSETS
from airflow_provider_modal.triggerer.need import WAITING

__all__ = ["ACTIVE", "ASSETS", "QUESTIONS", "RETRIES", "TRIGGERS", "Question"]

ACTIVE = "active"
TRIGGERS = "triggers"

QUESTIONS = (
    *due_moves.QUESTIONS,
    *due_upkeep.QUESTIONS,
    # Not reasons for a run, but facts that the tick needs.
    Question(
        ACTIVE,
        ("task_instance",),
        # A run of a paused DAG moves only while tasks of it are under way.
        """
        SELECT EXISTS (SELECT 1 FROM dag_run r JOIN dag d ON d.dag_id = r.dag_id
                        WHERE r.state = 'running' AND NOT d.is_paused AND NOT d.is_stale)
            OR EXISTS (SELECT 1 FROM task_instance
                        WHERE state IN ('queued', 'running', 'restarting', 'deferred')),
               NULL::timestamptz, NULL::jsonb
        """,
    ),
    Question(
        TRIGGERS,
        ("trigger",),
        f"SELECT {WAITING}, NULL::timestamptz, NULL::jsonb",
    ),
)

"""Which DAG runs are there, and what became of one and its tasks, try by try?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.log import Log
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from airflow.utils.session import create_session
from sqlalchemy import select
from sqlalchemy.orm import Session

from airflow_provider_modal.control.hints import did_you_mean
from airflow_provider_modal.control.times import iso
from airflow_provider_modal.errors import NotFoundError

REASON_EVENTS = (
    "state mismatch",
    "heartbeat timeout",
    "stuck in queued tries exceeded",
    "modal dispatch lost",
)
"""Events of Airflow's log table that say why a try ended otherwise than by the task's own doing."""
_EXTRA = "Extra info: "

_Key = tuple[str, int]


def list_runs(
    dag_id: str | None = None, states: Sequence[str] | None = None, limit: int = 25
) -> dict[str, Any]:
    """Return DAG runs, the newest first.

    :param dag_id: only of this DAG.
    :param states: only those in one of these states.
    :param limit: how many at most.
    :return: ``runs``, and ``more``: whether there are others.
    :raises NotFoundError: there is no such DAG.
    """
    # By id, not by date: a run that catches up on an old interval is new all the same.
    statement = select(DagRun).order_by(DagRun.id.desc()).limit(limit + 1)
    if dag_id is not None:
        statement = statement.where(DagRun.dag_id == dag_id)
    if states:
        statement = statement.where(DagRun.state.in_(states))
    with create_session() as session:
        runs = session.scalars(statement).all()
        if not runs and dag_id is not None:
            known = session.scalars(select(DagModel.dag_id)).all()
            if dag_id not in known:
                raise NotFoundError(f"DAG {dag_id} does not exist{did_you_mean(dag_id, known)}")
        return {
            "runs": [
                {
                    "dag_id": run.dag_id,
                    "run_id": run.run_id,
                    "state": run.state,
                    "type": run.run_type,
                    "logical_date": iso(run.logical_date),
                    "queued_at": iso(run.queued_at),
                    "start": iso(run.start_date),
                    "end": iso(run.end_date),
                }
                for run in runs[:limit]
            ],
            "more": len(runs) > limit,
        }


def show(dag_id: str, run_id: str) -> dict[str, Any]:
    """Return a run with its tasks; former tries of a task are its ``history``.

    :raises NotFoundError: there is no such run.
    """
    with create_session() as session:
        run = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
        if run is None:
            raise NotFoundError(f"DAG {dag_id} has no run {run_id}")
        reasons = _reasons(session, dag_id, run_id)
        history: dict[_Key, list[dict[str, Any]]] = defaultdict(list)
        for entry in _tries(session, TaskInstanceHistory, dag_id, run_id):
            history[entry.task_id, entry.map_index].append(_described(entry, reasons))
        return {
            "dag_id": dag_id,
            "run_id": run_id,
            "state": run.state,
            "queued_at": iso(run.queued_at),
            "start": iso(run.start_date),
            "end": iso(run.end_date),
            "tasks": [
                {**_described(ti, reasons), "history": history[ti.task_id, ti.map_index]}
                for ti in _tries(session, TaskInstance, dag_id, run_id)
            ],
        }


def _tries(session: Session, model: Any, dag_id: str, run_id: str) -> Any:
    return session.scalars(
        select(model)
        .where(model.dag_id == dag_id, model.run_id == run_id)
        .order_by(model.task_id, model.map_index, model.try_number)
    )


def _described(ti: Any, reasons: dict[tuple[str, int, int], str]) -> dict[str, Any]:
    return {
        "task_id": ti.task_id,
        "map_index": ti.map_index,
        "try_number": ti.try_number,
        "state": ti.state,
        "queued_at": iso(ti.queued_dttm),
        "start": iso(ti.start_date),
        "end": iso(ti.end_date),
        "host": ti.hostname or None,
        "external_executor_id": ti.external_executor_id,
        "reason": reasons.get((ti.task_id, ti.map_index, ti.try_number)),
    }


def _reasons(session: Session, dag_id: str, run_id: str) -> dict[tuple[str, int, int], str]:
    """Return the last reason on record by task, map index and try."""
    records = session.execute(
        select(Log.task_id, Log.map_index, Log.try_number, Log.extra)
        .where(Log.dag_id == dag_id, Log.run_id == run_id, Log.event.in_(REASON_EVENTS))
        .order_by(Log.dttm)
    )
    reasons: dict[tuple[str, int, int], str] = {}
    for task_id, map_index, try_number, extra in records:
        # Airflow wraps what the executor said into a paragraph about states.
        said = (extra or "").rpartition(_EXTRA)[2].strip()
        reasons[task_id, -1 if map_index is None else map_index, try_number] = said
    return reasons

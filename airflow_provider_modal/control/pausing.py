"""DAGs are paused, and go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.models.dag import DagModel
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_modal.control.hints import did_you_mean
from airflow_provider_modal.errors import NotFoundError


def pause(dag_ids: Sequence[str]) -> dict[str, Any]:
    """Pause DAGs: no new run of them begins, and no further task of their runs.

    :return: ``dags``, in the order given: ``dag_id``, ``paused``, and ``changed``: whether it was otherwise.
    :raises NotFoundError: one of them does not exist; nothing was changed.
    """
    return _set(dag_ids, paused=True)


def unpause(dag_ids: Sequence[str]) -> dict[str, Any]:
    """Let paused DAGs go on; see :func:`pause`.

    :raises NotFoundError: one of them does not exist; nothing was changed.
    """
    return _set(dag_ids, paused=False)


def _set(dag_ids: Sequence[str], *, paused: bool) -> dict[str, Any]:
    wanted = list(dict.fromkeys(dag_ids))
    with create_session() as session:
        known = {dag.dag_id: dag for dag in session.scalars(select(DagModel))}
        for dag_id in wanted:
            if dag_id not in known:
                raise NotFoundError(
                    f"DAG {dag_id} does not exist{did_you_mean(dag_id, known)}"
                    + (" (nothing was changed)" if len(wanted) > 1 else "")
                )
        changed = [dag_id for dag_id in wanted if known[dag_id].is_paused != paused]
        for dag_id in changed:
            known[dag_id].is_paused = paused
    return {"dags": [{"dag_id": name, "paused": paused, "changed": name in changed} for name in wanted]}

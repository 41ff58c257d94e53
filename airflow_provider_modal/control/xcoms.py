"""What did a task return?"""

from __future__ import annotations

import json
from typing import Any

from airflow.models.xcom import XComModel
from airflow.serialization import stringify
from airflow.utils.session import create_session

from airflow_provider_modal.errors import NotFoundError
from airflow_provider_modal.xcom import place
from airflow_provider_modal.xcom.reference import Reference

SHOWN_BYTES = 1024 * 1024
"""How large a value on the Volume may be to be read for people."""
_NOT_SUPPORTED: type[Exception] | tuple[()] = getattr(stringify, "StringifyNotSupportedError", ())
"""What says that a value can't be told without its class; since 3.4 there is no such value."""


def get(
    dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1
) -> dict[str, Any]:
    """Return an XCom as JSON: ``{"value": ...}``; what JSON can't say is told as Airflow's UI tells it.

    Of a value on the Volume that is very large, or pickled, only where it is.

    :raises NotFoundError: the task left no such value.
    """
    with create_session() as session:
        found = session.scalars(
            XComModel.get_many(
                run_id=run_id, key=key, task_ids=task_id, dag_ids=dag_id, map_indexes=map_index, limit=1
            )
        ).first()
        if found is None:
            which = f" {map_index}" if map_index >= 0 else ""
            raise NotFoundError(f"task {task_id}{which} of run {run_id} has no XCom {key!r}")
        return {"value": _jsonable(found)}


def _jsonable(found: Any) -> Any:
    stored = found.value
    reference = Reference.from_value(stored)
    if reference is not None and reference.encoding == "json" and reference.bytes <= SHOWN_BYTES:
        stored = place.current().load(reference)
    try:
        value = stringify.stringify(stored)
    except _NOT_SUPPORTED:
        value = XComModel.deserialize_value(found)
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value

"""Airflow's schema: made, brought up to date and removed, with Airflow's own functions."""

from __future__ import annotations

from typing import Any

from airflow.utils import db
from airflow.utils.session import create_session

from airflow_provider_modal.db import schema
from airflow_provider_modal.errors import ModalflowError


def migrate() -> dict[str, Any]:
    """Bring the schema to the installed Airflow's state; nothing changes if it is.

    :return: ``changed`` and the ``revision`` it has now.
    :raises SchemaError: the database is of a newer Airflow.
    :raises ModalflowError: Airflow refuses to migrate it.
    """
    before = _revision()
    schema.refuse_unknown(before)
    try:
        db.upgradedb()
    except SystemExit:
        # Airflow has logged what is in the way.
        raise ModalflowError(
            "Airflow refuses to migrate the database by itself; why is in the log of function control: "
            "modal app logs"
        ) from None
    after = _revision()
    return {"changed": before != after, "revision": after}


def drop_schema() -> dict[str, Any]:
    """Remove all of Airflow's tables.

    :return: ``changed``: whether there were any.
    """
    before = _revision()
    db.resetdb(skip_init=True)
    return {"changed": before is not None}


def _revision() -> str | None:
    with create_session() as session:
        revision: str | None = db._get_current_revision(session)
    return revision

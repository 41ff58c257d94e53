"""Airflow's schema: made, brought up to date and removed, with Airflow's own functions."""

from __future__ import annotations

from typing import Any

from airflow import __version__ as airflow_version
from airflow.utils import db
from airflow.utils.session import create_session
from alembic.util import CommandError

from airflow_provider_modal.errors import ModalflowError


def migrate() -> dict[str, Any]:
    """Bring the schema to the installed Airflow's state; nothing changes if it is.

    :return: ``changed`` and the ``revision`` it has now.
    :raises ModalflowError: the database is of a newer Airflow, or Airflow refuses to migrate it.
    """
    before = _revision()
    if before is not None:
        _refuse_newer(before)
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


def _refuse_newer(revision: str) -> None:
    """Refuse a schema that the installed Airflow does not know, and so is newer.

    :raises ModalflowError: it is.
    """
    try:
        known = db._get_script_object().get_revision(revision)
    except CommandError:
        known = None
    if known is None:
        raise ModalflowError(
            f"the database has schema revision {revision}, which Airflow {airflow_version} does not know: it "
            "was migrated by a newer Airflow. Deploy with that version, or use another database"
        )

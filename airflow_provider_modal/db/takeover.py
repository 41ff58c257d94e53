"""May an environment take a database that no environment owns?

An empty one, or what a destroyed environment left behind: yes. Tables that an Airflow elsewhere uses: only if
a person says so. A migration can't be undone, and two schedulers on one database reset each other's tasks.
"""

from __future__ import annotations

from psycopg2 import errors
from psycopg2.extensions import connection as Connection

from airflow_provider_modal.db import schema
from airflow_provider_modal.db.connect import APPLICATION_PREFIX
from airflow_provider_modal.db.ownership import OwnershipError, place
from airflow_provider_modal.version_compat import airflow_version

HEARTBEAT_MINUTES = 5
"""A job that was heard of this recently is taken for alive; Airflow's own limit for its health is shorter."""

# Rows of ours say so in executor_class (see scheduler.jobs): those of an environment that is gone stay
# "running" for as long as its schedule would have gone on.
_LIVING = f"""
    SELECT job_type, COALESCE(hostname, ''), extract(epoch FROM now() - latest_heartbeat)::bigint FROM job
     WHERE state = 'running' AND latest_heartbeat > now() - interval '{HEARTBEAT_MINUTES} minutes'
       AND COALESCE(executor_class, '') NOT LIKE '{APPLICATION_PREFIX}%'
     ORDER BY latest_heartbeat DESC LIMIT 1
"""


def refuse_in_use(connection: Connection, env: str) -> None:
    """Check that the database's tables are not those of an Airflow that somebody else runs.

    :raises OwnershipError: one of its jobs was heard of a moment ago, or the tables are not of the installed
        Airflow, so that they would be migrated.
    """
    found = schema.revision(connection)
    if found is None:
        return
    living = _living(connection)
    if living is not None:
        job, host, seconds = living
        on = f" on {host}" if host else ""
        raise OwnershipError(
            f"{place(connection)} is used by another Airflow: a {job}{on} was heard of {seconds} s ago. Give "
            f"environment {env!r} a database of its own. If that Airflow is stopped for good: modalflow "
            f"create --env {env} --take-database"
        )
    wanted = schema.installed().head
    if found != wanted:
        raise OwnershipError(
            f"{place(connection)} holds the tables of another Airflow (revision {found}; Airflow "
            f"{airflow_version()} has {wanted}), which would be migrated for good. Give environment {env!r} "
            "a database of its own; or, if no other Airflow needs this one any more and you have a backup: "
            f"modalflow create --env {env} --take-database"
        )


def _living(connection: Connection) -> tuple[str, str, int] | None:
    with connection.cursor() as cursor:
        try:
            cursor.execute(_LIVING)
        except errors.UndefinedTable:
            return None
        row: tuple[str, str, int] | None = cursor.fetchone()
    return row

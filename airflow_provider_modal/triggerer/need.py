"""Is a triggerer needed, and does one live? Asked with psycopg2 alone.

A triggerer holds a lock of its own for as long as it lives, so that a killed one is missed at once; the name
of its connection tells which deployment it belongs to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from psycopg2.extensions import connection as Connection

from airflow_provider_modal import airflow_settings
from airflow_provider_modal.db.connect import application_name
from airflow_provider_modal.db.lock import key_halves

LOCK_KEY = 0x6D6F_6461_6C66_7472
"""``modalftr``."""

# A trigger with a queue of its own waits for a triggerer that somebody else runs; before Airflow 3.2 there is
# no such column.
WAITING = "EXISTS (SELECT 1 FROM trigger t WHERE to_jsonb(t) ->> 'queue' IS NULL)"
"""Condition in SQL: there are triggers for our triggerer."""
_HOLDER = """
      FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
     WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND l.classid::bigint = %s AND l.objid::bigint = %s
"""
LIVES = f"EXISTS (SELECT 1 {_HOLDER % key_halves(LOCK_KEY)} )"
"""Condition in SQL: a triggerer lives."""
_LOOK = f"SELECT {WAITING}, (SELECT a.application_name {_HOLDER} LIMIT 1)"
_END = f"SELECT pg_terminate_backend(a.pid) {_HOLDER} AND a.application_name = %s"


@dataclass(frozen=True)
class Need:
    """What there is to run triggers for, and who runs them.

    :param waiting: there are triggers.
    :param holder: name of the connection of the triggerer that lives; None if there is none.
    """

    waiting: bool
    holder: str | None


def look(connection: Connection) -> Need:
    """Return what the database says, in one round trip."""
    with connection.cursor() as cursor:
        cursor.execute(_LOOK, key_halves(LOCK_KEY))
        waiting, holder = cursor.fetchone() or (False, None)
    return Need(waiting, holder)


def holder_name(env: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the name of the connection that a triggerer of this container's deployment has.

    Names sort as their deployments came: see ``airflow_settings.new_deployment``.
    """
    return _prefix(env) + environ.get(airflow_settings.DEPLOYMENT, "")[:8]


def is_outdated(holder: str, env: str) -> bool:
    """Tell whether a triggerer is of a deployment before this container's.

    One of a later deployment is none of our business: a scheduler run may go on for minutes after the next
    deployment, and would else end its successor's triggerer again and again.
    """
    return holder.startswith(_prefix(env)) and holder < holder_name(env)


def end(connection: Connection, holder: str) -> None:
    """Take the lock from a triggerer, told by the name of its connection; it ends itself then.

    For one of a former deployment: it may have hours to go, with former settings, former packages and a
    former Airflow.
    """
    with connection.cursor() as cursor:
        cursor.execute(_END, (*key_halves(LOCK_KEY), holder))


def _prefix(env: str) -> str:
    return application_name(env, "triggers-")

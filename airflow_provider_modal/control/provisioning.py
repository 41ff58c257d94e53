"""What do ``create`` and ``destroy`` ask of the environment's database?

Everything but the migration itself is answered by the entry process with psycopg2, so that a ``create`` with
nothing to migrate waits neither for Airflow's import nor for the scheduler.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import connection as Connection

from airflow_provider_modal import airflow_settings
from airflow_provider_modal.airflow_settings import FERNET_KEY
from airflow_provider_modal.control.child import run_in_child
from airflow_provider_modal.db import encryption, ownership, schema, takeover
from airflow_provider_modal.db.connect import application_name, connect
from airflow_provider_modal.db.lock import AdvisoryLock, LockHeldError
from airflow_provider_modal.db.url import host_of

if TYPE_CHECKING:
    from airflow_provider_modal.container.zygote import Zygote

LOCK_SECONDS = 5.0
"""How long one call waits for a scheduler run to end. The caller repeats it: a run may take longer than a
call of this function may."""
MIGRATION_SECONDS = 840.0
"""Below ``app.CONTROL_TIMEOUT`` with the wait before it; large tables take their time to be changed."""


def check_database(zygote: Zygote, op: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Tell what the database is, without changing anything.

    :return: ``host``, ``server_version``, ``max_connections``, the schema's ``revision``,
        ``schema_current``: whether there is nothing to migrate, and ``unreadable``: how many values of
        connections and variables the environment's Fernet key can't decrypt.
    :raises LockHeldError: another environment schedules on it.
    :raises OwnershipError: it belongs to another environment, or to none yet.
    :raises UnreachableError: it does not answer.
    :raises ConfigError: it refuses us, is too old, or is behind a pooler in transaction mode.
    """
    return _described(op, ownership.require)


def claim_database(zygote: Zygote, op: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Make the database the environment's own, and tell what it is as ``check_database`` does.

    :param args: ``take``: also if another Airflow uses it, or did.
    :raises ModalflowError: as ``check_database``; a database that belongs to nobody is taken.
    """

    def claim(connection: Connection, env: str) -> None:
        if not args.get("take") and ownership.owner(connection) is None:
            takeover.refuse_in_use(connection, env)
        ownership.claim(connection, env)

    return _described(op, claim)


def migrate(zygote: Zygote, op: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the schema to the installed Airflow's state, while no scheduler works.

    :return: ``changed`` and ``revision``; or ``busy``, a sentence, and ``holder``, the operation that is
        under way or None for a scheduler run, if that has not ended within ``LOCK_SECONDS``: nothing was
        done, and the call is to be repeated.
    :raises SchemaError: the database is of a newer Airflow.
    :raises OwnershipError: it belongs to another environment, or to none yet.
    :raises ModalflowError: another environment schedules on it, or Airflow refuses to migrate it.
    """
    env = airflow_settings.deployed_names().env

    def ready(connection: Connection) -> None:
        ownership.require(connection, env)
        schema.refuse_unknown(schema.revision(connection))

    lock = _lock(op)
    busy = _acquire(lock, env, ready)
    if busy is not None:
        return busy
    with lock:
        result: dict[str, Any] = run_in_child(zygote, op, args, MIGRATION_SECONDS)
        ownership.note_migration(lock.connection, schema.fingerprint())
    return result


def drop_schema(zygote: Zygote, op: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Remove Airflow's tables and give the database up.

    :return: ``changed``: whether there were any; or ``busy``, as ``migrate``.
    :raises OwnershipError: it belongs to another environment, or there are tables that belong to none.
    :raises LockHeldError: another environment schedules on it.
    """
    env = airflow_settings.deployed_names().env

    def ready(connection: Connection) -> None:
        # Without both, an earlier call of this one came to its end.
        if ownership.owner(connection) is not None or schema.revision(connection) is not None:
            ownership.require(connection, env)

    lock = _lock(op)
    busy = _acquire(lock, env, ready)
    if busy is not None:
        return busy
    with lock:
        if schema.revision(lock.connection) is None and ownership.owner(lock.connection) is None:
            return {"changed": False}
        result: dict[str, Any] = run_in_child(zygote, op, args)
        ownership.release(lock.connection, env)
    return result


def release_database(zygote: Zygote, op: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Give the database up, so that another environment may have it.

    :return: ``changed``: whether it was the environment's own.
    :raises OwnershipError: it belongs to another environment.
    """
    with _connection(op) as (connection, env):
        return {"changed": ownership.release(connection, env)}


def _described(op: str, owned: Callable[[Connection, str], None]) -> dict[str, Any]:
    version = _lock(op).check()
    with _connection(op) as (connection, env):
        owned(connection, env)
        with connection.cursor() as cursor:
            cursor.execute("SHOW max_connections")
            (max_connections,) = cursor.fetchone() or (0,)
        revision = schema.revision(connection)
        migrated = ownership.migrated_for(connection) == schema.fingerprint()
        fernet_key = os.environ.get(FERNET_KEY)
        unreadable = encryption.unreadable(connection, fernet_key) if fernet_key else 0
    return {
        "host": host_of(airflow_settings.database_url()),
        "server_version": version,
        "max_connections": int(max_connections),
        "revision": revision,
        "schema_current": migrated and revision == schema.installed().head,
        "unreadable": unreadable,
    }


def _acquire(
    lock: AdvisoryLock, env: str, ready: Callable[[Connection], None]
) -> dict[str, str | None] | None:
    """Take the lock, or return who of the environment's own has it and does not end."""
    try:
        lock.acquire(wait=LOCK_SECONDS, ready=ready)
    except LockHeldError as error:
        if error.environment != env:
            raise
        return {"busy": str(error), "holder": error.part}
    return None


@contextmanager
def _connection(op: str) -> Iterator[tuple[Connection, str]]:
    env = airflow_settings.deployed_names().env
    connection = connect(airflow_settings.database_url(), application_name=application_name(env, op))
    try:
        yield connection, env
    finally:
        connection.close()


def _lock(part: str) -> AdvisoryLock:
    env = airflow_settings.deployed_names().env
    return AdvisoryLock(airflow_settings.database_url(), application_name=application_name(env, part))

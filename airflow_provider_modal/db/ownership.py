"""Which environment does a database belong to?

The scheduler's lock is held only while something runs. Two environments on one database would therefore
take turns, each taking the other's DAGs for deleted and its tasks for lost. So ``create`` leaves a mark, and
whoever is about to change the database looks at it first.

The mark is a table because that takes no more rights than Airflow's own tables. ``airflow db reset`` and
``airflow db clean`` only know Airflow's tables and leave it; a copy of the database carries it along, and is
refused to another environment until somebody decides.
"""

from __future__ import annotations

from psycopg2 import errors
from psycopg2.extensions import connection as Connection

from airflow_provider_modal.errors import ConfigError

TABLE = "modalflow_environment"
_CLAIM_KEY = 0x6D6F_6461_6C66_6F77
"""``modalfow``: serialises claims; creating a table fails where two sessions do it at once."""

# One statement string is one transaction.
_CLAIM = f"""
    SELECT pg_advisory_xact_lock({_CLAIM_KEY});
    CREATE TABLE IF NOT EXISTS {TABLE} (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        environment text NOT NULL,
        since timestamptz NOT NULL DEFAULT now(),
        migrated_for text);
    INSERT INTO {TABLE} (environment) VALUES (%(env)s) ON CONFLICT DO NOTHING;
    SELECT environment FROM {TABLE};
"""


class OwnershipError(ConfigError):
    """The database does not belong to this environment; the text names the owner and what to do."""


def owner(connection: Connection) -> str | None:
    """Return the environment that the database belongs to; None if no ``create`` has claimed it."""
    return _read(connection, "environment")


def claim(connection: Connection, env: str) -> None:
    """Make the database the environment's own; nothing happens if it is.

    :raises OwnershipError: it belongs to another environment.
    :raises ConfigError: the database's user may not create tables.
    """
    if owner(connection) == env:
        return
    with connection.cursor() as cursor:
        try:
            cursor.execute(_CLAIM, {"env": env})
        except errors.InsufficientPrivilege as error:
            raise ConfigError(
                f"the user of database.connection_string may not create tables in {place(connection)} "
                f"({str(error).strip()}); grant it, as Airflow's own tables need it too"
            ) from None
        (found,) = cursor.fetchone() or (None,)
    _compare(connection, found, env)


def require(connection: Connection, env: str) -> None:
    """Check that the database is the environment's own.

    :raises OwnershipError: it belongs to another environment, or to none yet.
    """
    found = owner(connection)
    if found is None:
        raise OwnershipError(
            f"{place(connection)} does not say yet that it belongs to environment {env!r}; run modalflow "
            f"create --env {env}"
        )
    _compare(connection, found, env)


def release(connection: Connection, env: str) -> bool:
    """Give the database up and return whether it was the environment's own.

    :raises OwnershipError: it belongs to another environment.
    """
    found = owner(connection)
    _compare(connection, found, env)
    if found is None:
        return False
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {TABLE}")
    return True


def migrated_for(connection: Connection) -> str | None:
    """Return the fingerprint of the software that last brought the schema up to date, if it is known."""
    return _read(connection, "migrated_for")


def note_migration(connection: Connection, fingerprint: str) -> None:
    """Remember which software brought the schema up to date."""
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {TABLE} SET migrated_for = %s", (fingerprint,))


def _read(connection: Connection, column: str) -> str | None:
    with connection.cursor() as cursor:
        try:
            cursor.execute(f"SELECT {column} FROM {TABLE}")
        except errors.UndefinedTable:
            return None
        row = cursor.fetchone()
    return row[0] if row else None


def _compare(connection: Connection, found: str | None, env: str) -> None:
    if found not in (None, env):
        raise OwnershipError(
            f"{place(connection)} belongs to environment {found!r}: give environment {env!r} a database of "
            f"its own. If {found!r} is gone or uses another one, run in this database: DROP TABLE {TABLE}"
        )


def place(connection: Connection) -> str:
    """Return which database that is, for messages."""
    info = connection.info
    return f"database {info.dbname!r} at {info.host}:{info.port}"

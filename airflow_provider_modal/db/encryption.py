"""Can the environment read what is encrypted in its database?

Airflow encrypts connections and variables with the Fernet key. One that does not fit is noticed by the first
task that needs a connection, long after the key was lost.
"""

from __future__ import annotations

from psycopg2 import errors
from psycopg2.extensions import connection as Connection

MOST = 100
"""How many values are tried of each sort: enough to tell a wrong key."""

_ENCRYPTED = (
    f"SELECT password FROM connection WHERE is_encrypted AND password <> '' LIMIT {MOST}",
    f"SELECT extra FROM connection WHERE is_extra_encrypted AND extra <> '' LIMIT {MOST}",
    f"SELECT val FROM variable WHERE is_encrypted AND val <> '' LIMIT {MOST}",
)


def unreadable(connection: Connection, fernet_key: str) -> int:
    """Return how many values of connections and variables can't be decrypted; ``MOST`` of a sort are tried.

    :param fernet_key: one, or several separated by commas.
    """
    values = [value for statement in _ENCRYPTED for value in _values(connection, statement)]
    if not values:
        return 0
    from cryptography.fernet import Fernet, InvalidToken, MultiFernet

    keys = MultiFernet([Fernet(part.strip()) for part in fernet_key.split(",")])
    count = 0
    for value in values:
        try:
            keys.decrypt(value.encode())
        except InvalidToken:
            count += 1
    return count


def _values(connection: Connection, statement: str) -> list[str]:
    with connection.cursor() as cursor:
        try:
            cursor.execute(statement)
        except errors.UndefinedTable:
            return []
        return [value for (value,) in cursor.fetchall()]

"""How does a process without Airflow reach the metadata database, and what does a user learn when it can't?

Every connection has a name that tells its environment, TCP keepalives on both sides (a container that
vanishes must not look alive for hours) and a bounded time to connect. Errors name the host, never the
password: libpq's own texts are only passed on after it is masked.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import psycopg2
from psycopg2 import errorcodes
from psycopg2.extensions import connection as Connection

from airflow_provider_modal.db.url import fault, host_of, secret_parts
from airflow_provider_modal.errors import ConfigError, UnreachableError

log = logging.getLogger(__name__)

APPLICATION_PREFIX = "modalflow:"
CONNECT_TIMEOUT = 10

# The client gives a silent connection up after about 10 s, the server only later: the holder of a lock knows
# that it lost it before anybody else can get it.
_CLIENT_KEEPALIVES: dict[str, Any] = {
    "keepalives": 1,
    "keepalives_idle": 4,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_SERVER_KEEPALIVES = {"tcp_keepalives_idle": 15, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 3}
_AWAY = (
    errorcodes.ADMIN_SHUTDOWN,
    errorcodes.CRASH_SHUTDOWN,
    errorcodes.CANNOT_CONNECT_NOW,
    errorcodes.TOO_MANY_CONNECTIONS,
)
_URL_PASSWORD = re.compile(r"(?<=://)([^:/@\s]*):([^@\s]*)@")


def application_name(env: str, part: str | None = None) -> str:
    """Return the name under which connections of an environment show in ``pg_stat_activity``.

    :param part: which part of the environment, if it is not the scheduler.
    """
    return f"{APPLICATION_PREFIX}{env}" + (f"/{part}" if part else "")


def environment_of(application: str) -> str | None:
    """Return the environment that a connection belongs to; None if it is not one of ours."""
    if not application.startswith(APPLICATION_PREFIX):
        return None
    return application.removeprefix(APPLICATION_PREFIX).split("/", 1)[0]


def part_of(application: str) -> str | None:
    """Return which part of its environment a connection belongs to; None for the scheduler, and strangers."""
    if environment_of(application) is None:
        return None
    return application.partition("/")[2] or None


def connect(url: str, *, application_name: str, connect_timeout: int = CONNECT_TIMEOUT) -> Connection:
    """Open an autocommit connection.

    :param url: a libpq URL, ``postgresql://...``.
    :param application_name: shown to whoever looks at the server's activity.
    :param connect_timeout: seconds; at least 2, as libpq rounds up.
    :raises UnreachableError: the server does not answer, or not in time.
    :raises ConfigError: the URL is malformed, or the server refuses password, database name or permission.
    """
    wrong = fault(url)
    if wrong is not None:
        # Not even tried: libpq's complaint would quote a piece of the password.
        raise ConfigError(f"database.connection_string is not a valid PostgreSQL URL: {wrong}")
    try:
        connection = psycopg2.connect(
            url, application_name=application_name, connect_timeout=connect_timeout, **_CLIENT_KEEPALIVES
        )
    except psycopg2.ProgrammingError as error:
        # A malformed URL; libpq quotes parts of it.
        raise ConfigError(
            f"database.connection_string is not a valid PostgreSQL URL: {without_password(str(error), url)}"
        ) from None
    except psycopg2.Error as error:
        raise _refused(error, url) from None
    connection.autocommit = True
    _keep_alive(connection)
    return connection


def connection_failure(error: BaseException, url: str) -> ConfigError | UnreachableError | None:
    """Return what an error means if the connection failed; None if the server refused a statement.

    :param error: psycopg2's, SQLAlchemy's that wraps one, or one that was raised because of such.
    """
    cause: BaseException | None = error
    while cause is not None:
        found = getattr(cause, "orig", None) or cause
        if isinstance(found, (psycopg2.OperationalError, psycopg2.InterfaceError)):
            # A statement that timed out or met a deadlock is an OperationalError, too, and has a code.
            return _refused(found, url) if found.pgcode in (None, *_AWAY) else None
        cause = cause.__cause__
    return None


def without_password(text: str, url: str | None = None) -> str:
    """Return ``text`` without passwords: those in URLs, and that of ``url`` wherever it occurs."""
    for part in secret_parts(url) if url else ():
        text = text.replace(part, "***")
    return _URL_PASSWORD.sub(r"\1:***@", text)


def _keep_alive(connection: Connection) -> None:
    """Set the server's side; as statements, because poolers refuse them as options of the connection."""
    with connection.cursor() as cursor:
        for name, value in _SERVER_KEEPALIVES.items():
            try:
                cursor.execute(f"SET {name} = {value}")
            except psycopg2.Error as error:
                log.debug("the server does not let us set %s: %s", name, error)


def _refused(error: psycopg2.Error, url: str) -> ConfigError | UnreachableError:
    reason = " ".join(without_password(str(error), url).split())
    host = host_of(url)
    # psycopg2 gives errors of the connection no code, only the server's text.
    if error.pgcode == errorcodes.INVALID_PASSWORD or "authentication failed" in reason:
        return ConfigError(
            f"the database at {host} refuses the user or password of database.connection_string ({reason})"
        )
    if "connection option" in reason:
        return ConfigError(f"database.connection_string is not a valid PostgreSQL URL: {reason}")
    if "does not exist" in reason or "no pg_hba.conf entry" in reason or "permission denied" in reason:
        return ConfigError(
            f"the database at {host} refuses the connection ({reason}); correct database.connection_string"
        )
    return UnreachableError(
        f"the database at {host} can't be reached ({reason}); check that it runs and accepts connections "
        "from Modal's network"
    )

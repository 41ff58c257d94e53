"""Who may schedule? Whoever holds this lock: one session of one environment per database.

A session-level advisory lock ends with its connection, so a killed holder leaves nothing behind. The key is
constant: locks are per database, and two environments on one database would reset each other's tasks. The
holder is recognised by the name of its connection.

The connection must not be inherited: a forked child that keeps the socket keeps the lock. Therefore only
Modal's entry process takes it, and processes that run tasks or parse files descend from another one.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

from airflow_provider_modal.db.connect import connect, environment_of, part_of
from airflow_provider_modal.db.url import host_of
from airflow_provider_modal.errors import ConfigError, ModalflowError

log = logging.getLogger(__name__)

LOCK_KEY = 0x6D6F_6461_6C66_6C77
"""``modalflw``; PostgreSQL shows it as the halves ``classid`` and ``objid`` of ``pg_locks``."""
PING_SECONDS = 2.0
OLDEST_SERVER = 130_000
"""Number of the oldest PostgreSQL that is supported, in libpq's notation."""
_POLL_SECONDS = 0.25

_HOLDER = """
    SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
     WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND l.classid::bigint = %s AND l.objid::bigint = %s
"""
_HELD_BY_US = _HOLDER.replace("SELECT a.application_name", "SELECT 1") + " AND l.pid = pg_backend_pid()"
HOLDER = " ".join(_HOLDER.split()) % (LOCK_KEY >> 32, LOCK_KEY & 0xFFFF_FFFF)
"""A query: the application name of who holds the lock on this database; no row if nobody does."""


class LockHeldError(ModalflowError):
    """Somebody else holds the lock.

    :ivar environment: the environment that holds it; None if the holder can't be told.
    :ivar part: which part of that environment; None for a scheduler run.
    """

    def __init__(self, message: str, environment: str | None, part: str | None = None) -> None:
        super().__init__(message)
        self.environment = environment
        self.part = part


class AdvisoryLock:
    """The scheduler's lock on one database.

    :param url: a libpq URL, ``postgresql://...``.
    :param application_name: tells others who holds it; see :func:`db.connect.application_name`.
    :param key: of a lock other than the scheduler's, 64 bits with the highest one unset.
    :param owner: whose lock that is, for messages.
    """

    def __init__(
        self, url: str, *, application_name: str, key: int = LOCK_KEY, owner: str = "scheduler"
    ) -> None:
        self._url = url
        self._application_name = application_name
        self._key = key
        self._owner = owner
        self._connection: Connection | None = None
        self._lost = threading.Event()

    def acquire(self, *, wait: float = 0.0, ready: Callable[[Connection], None] | None = None) -> None:
        """Take the lock.

        :param wait: seconds to wait for a holder of our own environment, whose end is near; another
            environment is never waited for.
        :param ready: looks at the database and raises what keeps us from working with it. Asked before the
            lock is tried, so that who may not work disturbs nobody by holding it, and again after a wait,
            because a migration may have been what was waited for.
        :raises LockHeldError: somebody else holds it.
        :raises UnreachableError: the database does not answer.
        :raises ConfigError: it refuses us, or the connection goes through a pooler in transaction mode.
        """
        deadline = time.monotonic() + wait
        connection = connect(self._url, application_name=self._application_name)
        try:
            self.refuse_transaction_pooler(connection)
            if ready is not None:
                ready(connection)
            waited = False
            while not self._try(connection):
                holder, part = self._holder(connection)
                ours = holder is None or holder == environment_of(self._application_name)
                if not ours or time.monotonic() >= deadline:
                    raise self._held_by(holder, part)
                time.sleep(_POLL_SECONDS)
                waited = True
            if not self._is_held(connection):
                raise self._pooler_error()
            if ready is not None and waited:
                ready(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def check(self) -> str:
        """Find out, without taking the lock, whether a scheduler could; return the server's version.

        :raises LockHeldError: another environment schedules on this database.
        :raises UnreachableError: the database does not answer.
        :raises ConfigError: it refuses us, is too old, or is behind a pooler in transaction mode.
        """
        connection = connect(self._url, application_name=self._application_name)
        try:
            self.refuse_transaction_pooler(connection)
            if connection.server_version < OLDEST_SERVER:
                raise ConfigError(
                    f"the database at {host_of(self._url)} is PostgreSQL {_server_version(connection)}; "
                    "Airflow needs version 13 or later"
                )
            holder, part = self._holder(connection)
            if holder not in (None, environment_of(self._application_name)):
                raise self._held_by(holder, part)
            return _server_version(connection)
        finally:
            connection.close()

    def release(self) -> None:
        """Give the lock up; nothing happens if it is not held."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            # The server notices a closed connection only some time later; who waits for the lock need not.
            if not self.lost:
                _value(connection, "SELECT pg_advisory_unlock(%s)", (self._key,))
        except psycopg2.Error as error:
            log.debug("the %s's lock ends with its connection: %s", self._owner, error)
        finally:
            connection.close()

    @property
    def lost(self) -> bool:
        """Whether the lock was found lost since it was acquired."""
        return self._lost.is_set()

    @property
    def connection(self) -> Connection:
        """The session that holds the lock; for short statements."""
        if self._connection is None:
            raise ModalflowError(f"the {self._owner}'s lock is not held")
        return self._connection

    def ping(self) -> bool:
        """Ask the server whether this session still holds the lock."""
        try:
            held = self._connection is not None and self._is_held(self._connection)
        except psycopg2.Error as error:
            log.warning(
                "the connection that held the %s's lock failed: %s",
                self._owner,
                " ".join(str(error).split()),
            )
            held = False
        if not held:
            self._lost.set()
        return held

    def watch(self, on_lost: Callable[[], None]) -> LockWatch:
        """Return a context manager that calls ``on_lost`` from a thread as soon as the lock is lost."""
        return LockWatch(self, on_lost)

    def __enter__(self) -> AdvisoryLock:
        """Return the lock, which must have been acquired."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self.release()

    def _try(self, connection: Connection) -> bool:
        return bool(_value(connection, "SELECT pg_try_advisory_lock(%s)", (self._key,)))

    def _is_held(self, connection: Connection) -> bool:
        return _value(connection, _HELD_BY_US, key_halves(self._key)) is not None

    def _holder(self, connection: Connection) -> tuple[str | None, str | None]:
        """Return the environment that holds the lock, and which part of it; None if it was just given up.

        :raises LockHeldError: its holder is not an environment of ours.
        """
        application = _value(connection, _HOLDER, key_halves(self._key))
        if application is None:
            return None, None
        environment = environment_of(application)
        if environment is None:
            raise LockHeldError(
                f"the {self._owner}'s lock on the database at {host_of(self._url)} is held by "
                f"{application or 'a session without a name'!r}, which is no environment of modalflow; end "
                "that session",
                None,
            )
        return environment, part_of(application)

    def _held_by(self, environment: str | None, part: str | None) -> LockHeldError:
        ours = environment_of(self._application_name)
        if environment in (None, ours):
            what = f"operation {part}" if part else "another process"
            return LockHeldError(f"{what} of environment {ours!r} holds the {self._owner}'s lock", ours, part)
        return LockHeldError(
            f"environment {environment!r} schedules on the database at {host_of(self._url)}; give "
            f"environment {ours!r} a database of its own: two schedulers would reset each other's tasks",
            environment,
        )

    def refuse_transaction_pooler(self, connection: Connection) -> None:
        """Refuse a pooler that gives our server session to others between two statements.

        A pooler invents the process id that it sends when a connection starts, so a direct connection is told
        by its true one. Behind a pooler a second connection settles it: in transaction mode it is given the
        server session that the first one is not using right now.

        :raises ConfigError: there is one.
        """
        first = _value(connection, "SELECT pg_backend_pid()")
        if connection.info.backend_pid == first:
            return
        if _value(connection, "SELECT pg_backend_pid()") != first:
            raise self._pooler_error()
        other = connect(self._url, application_name=self._application_name)
        try:
            if _value(other, "SELECT pg_backend_pid()") == first:
                raise self._pooler_error()
        finally:
            other.close()

    def _pooler_error(self) -> ConfigError:
        return ConfigError(
            f"the database at {host_of(self._url)} is behind a pooler in transaction mode, through which a "
            "scheduler can't hold a lock; set database.connection_string to the direct address, or to the "
            "pooler's session mode"
        )


class LockWatch:
    """Watches a held lock from a thread of its own, whatever the rest of the process waits for."""

    def __init__(self, lock: AdvisoryLock, on_lost: Callable[[], None]) -> None:
        self._lock = lock
        self._on_lost = on_lost
        self._stop_reader, self._stop_writer = os.pipe()
        self._thread = threading.Thread(target=self._run, name="scheduler-lock", daemon=True)

    def __enter__(self) -> LockWatch:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching; ``on_lost`` is not called any more once this returns."""
        os.close(self._stop_writer)
        self._thread.join()
        os.close(self._stop_reader)

    def _run(self) -> None:
        while True:
            try:
                # The server's goodbye makes the socket readable; one that fell silent is found by the ping.
                sockets = [self._stop_reader, self._lock.connection.fileno()]
                readable, _, _ = select.select(sockets, [], [], PING_SECONDS)
            except (psycopg2.Error, OSError, ValueError) as error:
                # Another thread's statement has found the connection closed, and the ping will.
                log.debug("the lock's connection can't be waited for: %s", error)
                readable = []
            if self._stop_reader in readable:
                return
            if not self._lock.ping():
                self._on_lost()
                return


def key_halves(key: int) -> tuple[int, int]:
    """Return a lock's key as the columns ``classid`` and ``objid`` of ``pg_locks`` show it."""
    return key >> 32, key & 0xFFFF_FFFF


def _value(connection: Connection, statement: str, arguments: tuple[int, ...] = ()) -> Any:
    """Return the first column of the first row; None if there is no row."""
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments)
        row = cursor.fetchone()
    return row[0] if row else None


def _server_version(connection: Connection) -> str:
    # "17.2 (Debian 17.2-1.pgdg120+1)" -> "17.2"
    return str(_value(connection, "SHOW server_version")).split(" ", 1)[0]

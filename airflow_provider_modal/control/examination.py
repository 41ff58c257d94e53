"""What does an environment look like from inside: its database, its Volume, its clock?

Answered by the entry process with psycopg2. Nothing is changed, and nothing that is found wrong ends the
examination: it is an answer, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import connection as Connection

from airflow_provider_modal import airflow_settings, names
from airflow_provider_modal.db import ownership, schema
from airflow_provider_modal.db.connect import (
    application_name,
    connect,
    environment_of,
    host_of,
    without_password,
)
from airflow_provider_modal.db.lock import HOLDER, OLDEST_SERVER, AdvisoryLock
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.volume.files import VolumeFiles

if TYPE_CHECKING:
    from airflow_provider_modal.container.zygote import Zygote

_FACTS = """
    SELECT current_setting('max_connections')::int,
           (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
"""


def examine(zygote: Zygote, op: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Look at everything that a function of the environment needs.

    :return: ``at``: this container's time, in seconds since the epoch; ``volume``: what is wrong with the
        Volume, or None; ``unreachable``: why there is no connection to the database, or None. With one:
        ``database`` (``host``, ``server_version``, ``supported``: whether Airflow takes it, ``tls``: the
        protocol or None, ``max_connections``, ``connections`` at the moment, the schema's ``revision``,
        ``ahead``: by how many seconds its clock is, at least) and ``wrong``, which has what is wrong, or
        None, with ``pooler``, ``owner``, ``scheduler`` and ``schema``.
    """
    resources = airflow_settings.deployed_names()
    url = airflow_settings.database_url()
    facts: dict[str, Any] = {"volume": _fault(lambda: _read_manifest(resources)), "unreachable": None}
    try:
        connection = connect(url, application_name=application_name(resources.env, op))
    except ModalflowError as error:
        facts["unreachable"] = without_password(str(error), url)
    else:
        try:
            facts["database"] = _described(connection, url)
            facts["wrong"] = _wrong(connection, url, resources.env, op)
        except psycopg2.Error as error:
            facts["unreachable"] = without_password(" ".join(str(error).split()), url)
        finally:
            connection.close()
    return {**facts, "at": time.time()}


def _described(connection: Connection, url: str) -> dict[str, Any]:
    with connection.cursor() as cursor:
        cursor.execute(_FACTS)
        max_connections, connections = cursor.fetchone() or (0, 0)
        asked = time.time()
        cursor.execute(
            "SELECT extract(epoch FROM clock_timestamp())::float8, current_setting('server_version')"
        )
        now, version = cursor.fetchone() or (asked, "unknown")
        answered = time.time()
    return {
        "host": host_of(url),
        "server_version": str(version).split(" ", 1)[0],
        "supported": connection.server_version >= OLDEST_SERVER,
        "tls": connection.info.ssl_attribute("protocol") if connection.info.ssl_in_use else None,
        "max_connections": max_connections,
        "connections": connections,
        "revision": schema.revision(connection),
        # What the way there and back does not explain.
        "ahead": min(now - asked, 0.0) or max(now - answered, 0.0),
    }


def _wrong(connection: Connection, url: str, env: str, op: str) -> dict[str, str | None]:
    lock = AdvisoryLock(url, application_name=application_name(env, op))
    return {
        "pooler": _fault(lambda: lock.refuse_transaction_pooler(connection)),
        "owner": _fault(lambda: ownership.require(connection, env)),
        "scheduler": _foreign_scheduler(connection, env),
        "schema": _fault(lambda: schema.require_current(connection, env)),
    }


def _foreign_scheduler(connection: Connection, env: str) -> str | None:
    with connection.cursor() as cursor:
        cursor.execute(HOLDER)
        row = cursor.fetchone()
    if row is None or environment_of(row[0]) == env:
        return None
    return f"{row[0] or 'a session without a name'!r} holds the scheduler's lock on this database"


def _read_manifest(resources: names.ResourceNames) -> None:
    VolumeFiles.open(resources, airflow_settings.volume_mount()).read(names.MANIFEST_PATH)


def _fault(look: Callable[[], object]) -> str | None:
    """Return what is wrong according to ``look``; None if nothing is."""
    try:
        look()
    except (ModalflowError, OSError) as error:
        return str(error)
    return None

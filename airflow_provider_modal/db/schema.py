"""Does the database's schema fit the installed Airflow? Asked without importing Airflow.

Airflow keeps its schema's revision in ``alembic_version`` and the revisions it knows as files in
``airflow/migrations/versions``, each naming the one before it. Reading them as text takes a tenth of a
second; Airflow's own way takes its import, and that of all migrations.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from psycopg2 import errors
from psycopg2.extensions import connection as Connection

from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.version_compat import airflow_version

_ASSIGNMENT = re.compile(r"^(revision|down_revision)\b[^=\n]*=(.*)$", re.MULTILINE)
_QUOTED = re.compile(r"[\"']([^\"']+)[\"']")
_PROVIDERS = "apache_airflow_provider"
_OPTIONS = (
    "AIRFLOW__CORE__AUTH_MANAGER",
    "AIRFLOW__DATABASE__EXTERNAL_DB_MANAGERS",
    "AIRFLOW__ELASTICSEARCH__LOG_ID_TEMPLATE",
    "AIRFLOW__LOGGING__LOG_FILENAME_TEMPLATE",
)
"""Options that a migration of Airflow carries into the database, beside its own revision."""


class SchemaError(ModalflowError):
    """The installed Airflow can't work with the database's schema; the text says what to do."""


@dataclass(frozen=True)
class Revisions:
    """What the installed Airflow knows.

    :param head: the revision that it works with.
    :param known: that one and all from which it can migrate.
    """

    head: str
    known: frozenset[str]


@cache
def installed() -> Revisions:
    """Return the installed Airflow's revisions.

    :raises ModalflowError: its migrations can't be found or read.
    """
    spec = find_spec("airflow")
    folders = spec.submodule_search_locations if spec is not None else None
    files = [file for folder in folders or () for file in Path(folder).glob("migrations/versions/*.py")]
    known: set[str] = set()
    replaced: set[str] = set()
    for file in files:
        for name, value in _ASSIGNMENT.findall(file.read_text()):
            (known if name == "revision" else replaced).update(_QUOTED.findall(value))
    heads = known - replaced
    if len(heads) != 1:
        raise ModalflowError(
            f"the migrations of Airflow {airflow_version()} can't be read: {len(files)} files in "
            f"airflow/migrations/versions with {len(heads)} latest revisions instead of one"
        )
    return Revisions(heads.pop(), frozenset(known))


def revision(connection: Connection) -> str | None:
    """Return the revision of the database's schema; None if it has none."""
    with connection.cursor() as cursor:
        try:
            cursor.execute("SELECT version_num FROM alembic_version")
        except errors.UndefinedTable:
            return None
        row = cursor.fetchone()
    return row[0] if row else None


def require_current(connection: Connection, env: str) -> None:
    """Check that the installed Airflow can work with the database.

    :raises SchemaError: there is no schema, or it is of an earlier or a newer Airflow.
    """
    found = revision(connection)
    wanted = installed().head
    if found == wanted:
        return
    if found is None:
        raise SchemaError(f"the database does not have Airflow's tables: run modalflow create --env {env}")
    refuse_unknown(found)
    raise SchemaError(
        f"the database's schema is at revision {found}, of an earlier Airflow; Airflow {airflow_version()} "
        f"needs {wanted}: run modalflow create --env {env}"
    )


def refuse_unknown(found: str | None) -> None:
    """Refuse a revision that the installed Airflow does not know, and so is newer.

    :raises SchemaError: it is.
    """
    if found is not None and found not in installed().known:
        raise SchemaError(
            f"the database has schema revision {found}, which Airflow {airflow_version()} does not know: it "
            "was migrated by a newer Airflow. Run modalflow create with that version, or use another database"
        )


def fingerprint(environ: Mapping[str, str] = os.environ) -> str:
    """Identify everything that a migration depends on: Airflow, providers, which may have tables of their
    own, and the options that go with them."""
    providers = {
        f"{point.dist.name} {point.dist.version}"
        for point in entry_points(group=_PROVIDERS)
        if point.dist is not None and point.dist.name != "airflow-provider-modal"
    }
    parts = [airflow_version(), sorted(providers), [environ.get(option) for option in _OPTIONS]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

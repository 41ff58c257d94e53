"""What does the database say there is to do? Asked with psycopg2 alone, before Airflow is involved.

So far: must DAG files be parsed? The bundle's row holds the last DAG version of which every file was parsed
(the parse phase writes it at its very end), so nothing needs a look as long as the version is the same,
nobody asked for a file or a callback, and no file is older than Airflow's own interval allows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from psycopg2.extensions import connection as Connection

from airflow_provider_modal import names

_INTERVAL = "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL"
_DEFAULT_INTERVAL = 3600.0

_CALLBACKS = """
    SELECT EXISTS (SELECT 1 FROM callback WHERE type = 'dag_processor' AND bundle_name = %(bundle)s)
"""
_PARSING = """
    SELECT (SELECT version FROM dag_bundle WHERE name = %(bundle)s),
           EXISTS (SELECT 1 FROM callback WHERE type = 'dag_processor' AND bundle_name = %(bundle)s),
           EXISTS (SELECT 1 FROM dag_priority_parsing_request WHERE bundle_name = %(bundle)s),
           EXISTS (SELECT 1 FROM dag WHERE bundle_name = %(bundle)s AND NOT is_stale),
           LEAST((SELECT min(last_parsed_time) FROM dag WHERE bundle_name = %(bundle)s AND NOT is_stale),
                 (SELECT min(timestamp) FROM import_error WHERE bundle_name = %(bundle)s))
               < now() - make_interval(secs => %(interval)s)
"""


@dataclass(frozen=True)
class ParseNeed:
    """Why the parse phase must run.

    :param reasons: a few words each; empty if it need not run.
    :param parsed_version: the DAG version of which every file has been parsed; None if there is none.
    """

    reasons: tuple[str, ...]
    parsed_version: str | None


def callbacks_wait(connection: Connection) -> bool:
    """Return whether callbacks of DAGs wait for the parse phase, which executes them."""
    with connection.cursor() as cursor:
        cursor.execute(_CALLBACKS, {"bundle": names.BUNDLE_NAME})
        return cursor.fetchone() == (True,)


def parse_need(
    connection: Connection, digest: str, *, empty: bool, environ: Mapping[str, str] = os.environ
) -> ParseNeed:
    """Return why DAG files must be parsed, in one round trip.

    :param digest: the current DAG version.
    :param empty: whether that version has no file at all.
    """
    parameters = {
        "bundle": names.BUNDLE_NAME,
        "interval": float(environ.get(_INTERVAL, _DEFAULT_INTERVAL)),
    }
    with connection.cursor() as cursor:
        cursor.execute(_PARSING, parameters)
        row = cursor.fetchone()
    assert row is not None
    parsed_version, callbacks, requests, active, expired = row
    reasons = {
        "DAG files changed": parsed_version != digest,
        "callbacks wait": callbacks,
        "a file was requested": requests,
        "files are due again": bool(expired),
        # The second look at a tree that was found empty; see the parse phase.
        "all DAG files are gone": empty and active,
    }
    return ParseNeed(tuple(reason for reason, holds in reasons.items() if holds), parsed_version)

"""What does the database say there is to do? Asked with psycopg2 alone, before Airflow is involved.

``check`` tells the tick whether a full scheduler run would change anything; the questions are in
``due_queries``. ``parse_need`` tells a run whether DAG files must be parsed. The bundle's row holds the last
DAG version of which every file was parsed (the parse phase writes it at its very end), so nothing needs a
look as long as the version is the same, nobody asked for a file or a callback, and no file is older than
Airflow's own interval allows.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg2.extensions import connection as Connection

from airflow_provider_modal import names
from airflow_provider_modal.scheduler import due_queries, due_rules, due_script
from airflow_provider_modal.scheduler.history import Look

log = logging.getLogger(__name__)

MARGIN_SECONDS = 15.0
"""Longer than a statement takes to become visible, and than clocks of Modal's hosts should differ."""
LOOK_AGAIN_SECONDS = 3600.0
"""While DAG runs are running, a full run looks at them at least so often, whatever the check says."""
LONGEST_SILENCE_SECONDS = 600.0
"""How long Modal is not asked about a task without a sign of life, however long it has been silent."""
ANSWER_SECONDS = 20
"""How long the database may take to answer, whatever its own limit is."""
LOCK_SECONDS = 5
MOST_ROWS = 200
"""How many task instances that wait for a retry are told apart; with more, a run is due."""

FACTS = (due_queries.ACTIVE, due_queries.TRIGGERS)
REASONS = tuple(dict.fromkeys(q.reason for q in due_queries.QUESTIONS if q.reason not in FACTS))
"""Every reason for which the database alone makes a run due."""

_DIGEST = re.compile("[0-9a-f]{64}")
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


@dataclass(frozen=True)
class Settings:
    """Airflow's options, and the executor's, that say when the clock makes something due; in seconds.

    :param parallelism: task instances that may be with the executor.
    :param parse_interval: after which an unchanged file is parsed again.
    :param heartbeat_timeout: without a sign of life, after which a running task is given up.
    :param queued_timeout: after which a queued task is taken back.
    :param connection_test: after which a connection test is given up.
    :param silent: without a sign of life, after which the executor asks Modal about a task.
    """

    parallelism: int = 32
    parse_interval: float = 3600.0
    heartbeat_timeout: float = 300.0
    queued_timeout: float = 600.0
    connection_test: float = 90.0
    silent: float = 60.0

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Return what a container's Airflow would see (see ``airflow_settings.apply``)."""

        def number(option: str, default: float) -> float:
            return float(environ.get(f"AIRFLOW__{option}", default))

        test = number("CONNECTION_TEST__TIMEOUT", 60.0)
        return cls(
            parallelism=int(number("CORE__PARALLELISM", cls.parallelism)),
            parse_interval=number("DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL", cls.parse_interval),
            heartbeat_timeout=number("SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", cls.heartbeat_timeout),
            queued_timeout=number("SCHEDULER__TASK_QUEUED_TIMEOUT", cls.queued_timeout),
            connection_test=test + max(30.0, test // 2),
            silent=number("MODAL__SILENT_AFTER", cls.silent),
        )


@dataclass(frozen=True)
class Findings:
    """What a check found.

    :param reasons: why a run is due; empty if it is not.
    :param next_at: when the clock makes something due, by the database's clock, in seconds since the epoch;
        None if never.
    :param now: the database's clock.
    :param active: a DAG run or a task is under way: something may end at any time.
    :param triggers: triggers exist, which a triggerer of ours must run.
    :param holder: the application name of who holds the scheduler's lock; None if nobody does.
    """

    reasons: tuple[str, ...]
    next_at: float | None
    now: float
    active: bool
    triggers: bool
    holder: str | None = None


def look(connection: Connection) -> Look:
    """Return what a run that begins now will be compared with."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT extract(epoch FROM now())::float, ({due_script.KNOBS})")
        row = cursor.fetchone()
    assert row is not None
    return Look(*row)


def check(
    connection: Connection,
    settings: Settings,
    *,
    since: Look | None,
    digest: str | None = None,
    files_changed: bool = False,
    margin: float = MARGIN_SECONDS,
    first: str = "",
) -> Findings:
    """Find out, in one round trip, whether a full scheduler run would change anything.

    A yes too many costs a run, a no too many would lose one: whatever can't be told is a yes.

    :param since: the last look of a run that ended well; None if there is none.
    :param digest: the current DAG version, if it is known.
    :param files_changed: DAG files changed since the last version.
    :param margin: seconds for which a change counts longer than its own time says.
    :param first: a statement to execute on the same way.
    :raises psycopg2.Error: the server could not answer within ``ANSWER_SECONDS``, or at all.
    """
    script = due_script.script(_values(settings, since, digest, files_changed, margin))
    with connection.cursor() as cursor:
        limits = (
            f"SET LOCAL statement_timeout = '{ANSWER_SECONDS}s'; SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"
        )
        cursor.execute(";".join(part for part in (limits, first, script) if part))
        row = cursor.fetchone()
    assert row is not None
    found, (now, knobs, holder) = json.loads(row[0]), row[1:]
    reasons: list[str] = []
    times: list[float] = []
    facts = dict.fromkeys(FACTS, True)
    for answer in found:
        reason = answer["reason"]
        if "error" in answer:
            log.warning("the database can't say whether %s: %s", reason, answer["error"])
        if reason in facts:
            facts[reason] = answer["due"]
            continue
        due, at = _judged(answer, now)
        if due:
            reasons.append(reason)
        elif at is not None:
            times.append(at)
    if since is None:
        reasons.append("no run has ended well since the last change")
    elif knobs != since.knobs:
        reasons.append("DAGs were paused or unpaused, or limits changed")
    elif facts[due_queries.ACTIVE] and now - since.at > LOOK_AGAIN_SECONDS:
        reasons.append("nobody has looked for an hour")
    return Findings(
        tuple(reasons),
        min(times, default=None),
        now,
        facts[due_queries.ACTIVE],
        facts[due_queries.TRIGGERS],
        holder,
    )


def _judged(answer: Mapping[str, Any], now: float) -> tuple[bool, float | None]:
    """Return whether an answer means that a run is due, and if not, when it will be."""
    due, at, rows = answer["due"], answer.get("at"), answer.get("rows") or []
    if due:
        return True, None
    if answer["reason"] == due_queries.ASSETS:
        return any(due_rules.assets_suffice(row["expression"], row["queued"]) for row in rows), None
    if answer["reason"] == due_queries.RETRIES:
        retries = [due_rules.retry_at(row) for row in rows]
        known = [retry for retry in retries if retry is not None]
        at = min(known, default=None)
        return len(known) < len(retries) or (at is not None and at <= now), at
    return False, None if at is None else float(at)


def _values(
    settings: Settings, since: Look | None, digest: str | None, files_changed: bool, margin: float
) -> dict[str, str]:
    def interval(seconds: float) -> str:
        return f"make_interval(secs => {float(seconds)!r})"

    changed = "true" if files_changed else "false"
    if digest is not None and not files_changed:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is not the digest of a DAG version")
        parsed = f"(SELECT version FROM dag_bundle WHERE name = '{names.BUNDLE_NAME}')"
        changed = f"{parsed} IS DISTINCT FROM '{digest}'"
    return {
        "bundle": names.BUNDLE_NAME,
        "margin": interval(margin),
        "parallelism": str(settings.parallelism),
        "most_rows": str(MOST_ROWS),
        "silent": interval(settings.silent),
        "longest_silence": interval(LONGEST_SILENCE_SECONDS),
        "heartbeat_timeout": interval(settings.heartbeat_timeout),
        "queued_timeout": interval(settings.queued_timeout),
        "connection_test": interval(settings.connection_test),
        "parse_interval": interval(settings.parse_interval),
        "looked_at": "'-infinity'::timestamptz" if since is None else f"to_timestamp({since.at!r})",
        "files_changed": changed,
    }

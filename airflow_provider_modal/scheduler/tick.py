"""Is anything due? Asked on a schedule, by a process that must stay cheap: it never imports Airflow.

The tick is also what repairs lost wake-ups, so it asks for a run even when somebody else seems to have.

When nothing is due and nothing is under way either, the following ticks leave the database alone, at most for
``LONGEST_SLEEP_SECONDS``: a serverless PostgreSQL may go to sleep. "Nothing to do" holds only while there is
no wish, the DAG files are the same, and no run has begun or ended since before the tick looked. Nobody sleeps
after a run that did not end. What neither wakes nor shows on the Volume, such as a statement that somebody
types into the database, is noticed when the sleep ends.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg2

from airflow_provider_modal import airflow_settings, names, wakeup
from airflow_provider_modal.db.connect import application_name, connect, environment_of
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.scheduler import due, history, jobs
from airflow_provider_modal.scheduler.due_upkeep import TRIGGERER_DUE
from airflow_provider_modal.triggerer import health
from airflow_provider_modal.volume import dag_versions
from airflow_provider_modal.volume.files import VolumeFiles

if TYPE_CHECKING:
    import modal

log = logging.getLogger(__name__)

LONGEST_SLEEP_SECONDS = 600.0
UNHEARD_SECONDS = 30.0
"""A wish this old, while no run is at work, waits for a run whose waker has died."""


@dataclass(frozen=True)
class _Known:
    """What the state Dict and the Volume say.

    :param digest: the current DAG version; None if no run has seen it yet, or nobody knows.
    :param files_changed: no run has seen the current DAG files.
    """

    wish: Mapping[str, Any] | None
    note: Mapping[str, Any]
    records: list[history.Record]
    digest: str | None
    files_changed: bool

    def asleep(self, now: float) -> bool:
        """Tell whether what the last tick found still holds."""
        return (
            self.wish is None
            and not history.is_open(self.records)
            and not self.files_changed
            and now < (self.note.get("sleep_until") or 0.0)
            and self.note.get("after") == history.marker(self.records)
            and self.note.get("digest") == self.digest
        )


def tick(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Ask for a scheduler run if one is due; return what was found, which is also kept for ``status``.

    :return: ``at``; ``due``, the reasons; ``started``, whether a run was asked for; ``held``, why it was not
        although one is due; ``error``, what went wrong; ``sleep_until``, before when the database is not
        asked again, and ``next_at``, when the clock makes something due, both in seconds since the epoch or
        None.
    :raises modal.exception.Error: Modal does not answer; the next tick tries again.
    :raises ModalflowError: the database can't be reached or refuses us.
    """
    import modal

    resources = airflow_settings.deployed_names(environ)
    scheduler = airflow_settings.deployed_config(environ).scheduler
    interval = scheduler.interval_seconds
    state: modal.Dict = modal.Dict.from_name(resources.state_dict)
    now = time.time()
    known = _known(state, resources, environ)
    if known.asleep(now):
        return {**known.note, "asleep": True}
    note: dict[str, Any] = {
        "at": now,
        "due": [],
        "started": False,
        "held": None,
        "error": None,
        "next_at": None,
        "sleep_until": None,
        "after": history.marker(known.records),
        "digest": known.digest,
    }
    try:
        found = _ask_database(resources, known, environ)
        note["due"] = list(found.reasons)
        if TRIGGERER_DUE in note["due"] and (held := _triggerer_held(state, now)):
            note["due"].remove(TRIGGERER_DUE)
            note["held"] = held
        if found.next_at is not None:
            note["next_at"] = now + found.next_at - found.now
        at_work = found.holder is not None and environment_of(found.holder) == resources.env
        # The run that takes a wish waits in Modal's queue while another one is at work.
        patience = UNHEARD_SECONDS + (scheduler.max_run_seconds if at_work else 0.0)
        unheard = known.wish is not None and now - known.wish.get("at", 0.0) > patience
        if unheard:
            note["due"].append("a wake-up was not heard")
        slowed_until = history.slowed_until(known.records, interval)
        if not note["due"]:
            if not (found.active or found.triggers or known.wish or history.is_open(known.records)):
                note["sleep_until"] = min(
                    note["next_at"] or now + LONGEST_SLEEP_SECONDS, now + LONGEST_SLEEP_SECONDS
                )
        elif slowed_until is not None and now < slowed_until:
            note["held"] = f"{history.failures(known.records)} runs in a row have failed"
        elif at_work and not unheard:
            note["held"] = "a run is at work"
        else:
            note["held"] = None
            note["started"] = wakeup.request_run(resources, "; ".join(note["due"]), force=True)
    except Exception as error:
        note["error"] = (
            str(error) if isinstance(error, ModalflowError) else f"{type(error).__name__}: {error}"
        )
        raise
    finally:
        _keep(state, note)
    return note


def _triggerer_held(state: modal.Dict, now: float) -> str | None:
    """Return why no run need start a triggerer yet; None if one should."""
    known = health.read(state)
    if known.held_until is None or now >= known.held_until:
        return None
    return f"{known.failures} triggerers in a row have failed"


def _known(state: modal.Dict, resources: names.ResourceNames, environ: Mapping[str, str]) -> _Known:
    # The wish first: where it is gone, the run that took it is on record already.
    wish = state.get(names.WAKE_KEY)
    note = state.get(names.SLEEP_UNTIL_KEY)
    records = history.read(state)
    digest, changed = None, False
    try:
        digest = dag_versions.current(VolumeFiles.open(resources))
        changed = digest is None
    except ModalflowError as error:
        log.warning("whether DAG files changed is unknown: %s", error)
    return _Known(wish, note if isinstance(note, Mapping) else {}, records, digest, changed)


def _ask_database(resources: names.ResourceNames, known: _Known, environ: Mapping[str, str]) -> due.Findings:
    settings = dict(environ)
    airflow_settings.apply(settings)
    connection = connect(
        airflow_settings.database_url(environ), application_name=application_name(resources.env, "tick")
    )
    try:
        return due.check(
            connection,
            due.Settings.from_environ(settings),
            since=history.last_look(known.records),
            digest=known.digest,
            files_changed=known.files_changed,
            first=jobs.still_healthy(resources.env) if not history.failures(known.records) else "",
        )
    except psycopg2.Error as error:
        if error.pgcode is None:
            raise  # The server did not answer: a run would fare the same.
        log.warning("the database can't be asked: %s", " ".join(str(error).split()))
        return due.Findings(("the database could not say what is due",), None, 0.0, True, False)
    finally:
        for notice in connection.notices:
            log.warning("the database says: %s", " ".join(notice.split()))
        connection.close()


def _keep(state: modal.Dict, note: Mapping[str, Any]) -> None:
    try:
        state.put(names.SLEEP_UNTIL_KEY, dict(note))
    except Exception as error:
        # Without it the next tick asks the database again.
        log.warning("what this tick found is not kept: %s: %s", type(error).__name__, error)

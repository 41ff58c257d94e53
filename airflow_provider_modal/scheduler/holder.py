"""What does the entry process do in a scheduler run? It holds the lock and has the work done by children.

The order matters. The wish for this run is taken before anything else, so that a wake-up during the run, or
during one that does no work, starts another one. Files are parsed before anything is scheduled, so that a new
DAG's first run starts at once. When the lock is lost, or given up because this process is interrupted, the
working child dies before anything else happens, because from then on somebody else may schedule.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import connection as Connection

from airflow_provider_modal import airflow_settings, wakeup
from airflow_provider_modal.child_work import Worker, child_of
from airflow_provider_modal.config import SchedulerConfig
from airflow_provider_modal.container.zygote import Zygote, ZygoteError
from airflow_provider_modal.db import ownership, schema
from airflow_provider_modal.db.connect import application_name, without_password
from airflow_provider_modal.db.lock import AdvisoryLock, LockHeldError
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.names import ResourceNames
from airflow_provider_modal.scheduler import due, history, jobs, parse_venvs
from airflow_provider_modal.scheduler import run as child_targets
from airflow_provider_modal.scheduler.parse_logs import ParseLogs
from airflow_provider_modal.scheduler.parsing import Limits
from airflow_provider_modal.scheduler.unchanged import unchanged_files
from airflow_provider_modal.triggerer import keeper
from airflow_provider_modal.venvs.provision import Venvs
from airflow_provider_modal.volume import dag_copies, dag_versions
from airflow_provider_modal.volume.dag_lock import DagTreeLock
from airflow_provider_modal.volume.files import VolumeFiles

if TYPE_CHECKING:
    import modal

log = logging.getLogger(__name__)

PREDECESSOR_SECONDS = 15.0
"""How long to wait for a former run of ours to let go of the lock."""
PARSE_SHARE = 0.25
"""Share of a run's time after which no further file is parsed."""
END_SECONDS = 60.0
"""What a child may take on top of its time, to end."""


def run(zygote: Zygote, reason: str = "") -> dict[str, Any]:
    """Do one bounded piece of scheduling and return what was done.

    Whatever goes wrong below is logged and left to the next run, which the schedule starts. A run that may
    not work ends with a sentence and changes nothing: between a deployment and the end of its ``create`` the
    schema is not the one that the deployed Airflow needs.

    What becomes of the wish then depends on why. A process of our own that holds the lock may have read the
    database before the wish was made, so another run is asked for; that is no busy loop, because every one
    waits ``PREDECESSOR_SECONDS`` first. On a database that is not ready or another environment's, a run
    asked for now would fare the same: the schedule is soon enough.

    :param reason: who asked for the run, for the log.
    :raises ModalflowError: the database can't be reached or refuses us.
    """
    config = airflow_settings.deployed_config().scheduler
    resources = airflow_settings.deployed_names()
    lock = AdvisoryLock(airflow_settings.database_url(), application_name=application_name(resources.env))
    started = time.monotonic()
    journal = _journal(resources, reason)
    journal.begin()
    try:
        summary = _run(zygote, lock, config, resources, started, journal)
    except Exception as error:
        told = str(error) if isinstance(error, ModalflowError) else f"{type(error).__name__}: {error}"
        journal.end("failed", without_password(told, airflow_settings.database_url()))
        raise
    summary = {"reason": reason, **summary, "seconds": round(time.monotonic() - started, 3)}
    log.info("scheduler run: %s", summary)
    return summary


def _run(
    zygote: Zygote,
    lock: AdvisoryLock,
    config: SchedulerConfig,
    resources: ResourceNames,
    started: float,
    journal: history.Journal,
) -> dict[str, Any]:
    # Left behind by a run that may not work, it would silence everybody who wakes until the schedule.
    _take_wish(resources)
    try:
        lock.acquire(wait=PREDECESSOR_SECONDS, ready=partial(_require_ready, env=resources.env))
    except (LockHeldError, ownership.OwnershipError, schema.SchemaError) as error:
        log.warning("this run does nothing: %s", error)
        outcome = history.NOT_READY
        if isinstance(error, LockHeldError):
            outcome = history.LOCKED_OUT
            if error.environment == resources.env:
                outcome = history.LOCKED
                _ask_for_another(resources, "the lock was held")
        journal.end(outcome, str(error))
        return {"outcome": outcome, "message": str(error)}
    with lock:
        journal.has_lock()
        summary = _Run(zygote, lock, config, resources, started).work()
        # The next one to get the lock takes for dead whoever has not ended.
        journal.end(summary["outcome"], _message(summary), summary.pop("look", None))
    if summary.pop("more"):
        _ask_for_another(resources, "hand-over")
    return summary


class _Run:
    """One run under the lock."""

    def __init__(
        self,
        zygote: Zygote,
        lock: AdvisoryLock,
        config: SchedulerConfig,
        resources: ResourceNames,
        started: float,
    ) -> None:
        self._zygote = zygote
        self._lock = lock
        self._config = config
        self._resources = resources
        self._started = started
        self._worker = Worker()
        self._code: dict[str, str] = {}
        """Names the DAG version for the child that schedules, if that has plugins."""

    def work(self) -> dict[str, Any]:
        summary: dict[str, Any] = {}
        try:
            with (
                self._lock.watch(self._worker.end),
                keeper.Keeper(self._lock.connection, self._resources),
            ):
                summary = self._steps()
        except psycopg2.Error:
            # Also what a statement gets that was under way when the connection died.
            if self._lock.ping():
                raise
        if self._lock.lost:
            log.error("the scheduler's lock was lost; its child was killed, the next run takes over")
            return {**summary, "outcome": "lost the lock", "more": False, "look": None}
        return summary

    def _steps(self) -> dict[str, Any]:
        ended = jobs.end_predecessors(self._lock.connection, self._resources.env, jobs.SCHEDULER_JOB)
        files = VolumeFiles.open(self._resources, airflow_settings.volume_mount())
        began = time.time()
        summary: dict[str, Any] = {"predecessors": ended, "parse": self._parse(files)}
        with ParseLogs(files, airflow_settings.parse_log_folder(), began):
            return self._schedule(summary)

    def _schedule(self, summary: dict[str, Any]) -> dict[str, Any]:
        # Before scheduling reads anything: what changes from now on is new to whoever compares.
        seen = due.look(self._lock.connection)
        scheduled = self._in_child(
            child_targets.SCHEDULE,
            {"env": self._resources.env, "max_seconds": self._seconds_left()},
            self._code,
            self._seconds_left() + END_SECONDS,
        )
        summary["schedule"] = scheduled
        failed = "error" in scheduled
        if not failed and not self._lock.lost:
            self._leave(scheduled)
        more = not failed and (scheduled.get("stopped") == "budget" or self._callbacks_wait())
        if scheduled.get("stopped") == "idle" and "error" not in summary["parse"]:
            summary["look"] = seen
        return {"outcome": "failed" if failed else history.DONE, **summary, "more": more}

    def _parse(self, files: VolumeFiles) -> dict[str, Any]:
        """Parse what must be parsed; running tasks are looked after even when that is not possible."""
        try:
            version = dag_versions.snapshot(files, lock=DagTreeLock.open(self._resources))
            if any(path.startswith(f"{dag_copies.PLUGINS}/") for path in version.files):
                dag_copies.materialise(files, version.digest, dag_copies.default_root())
                self._code = {dag_versions.HEAD_VARIABLE: version.digest}
            need = due.parse_need(self._lock.connection, version.digest, empty=not version.files)
            if not need.reasons:
                return {"skipped": "nothing changed"}
            tree = dag_copies.materialise(files, version.digest, dag_copies.default_root())
            unchanged = unchanged_files(files, self._lock.connection, version, need.parsed_version)
        except ModalflowError as error:
            log.error("DAG files can't be parsed in this run: %s", error)
            return {"error": str(error)}
        available = Venvs(files, _state(self._resources), holder="of the scheduler", note=_note_of_venv)
        venvs = parse_venvs.prepare(available, tree, version.files, lambda: self._lock.lost)
        config = self._config
        limits = Limits(
            config.parse_timeout_seconds, config.max_run_seconds * PARSE_SHARE, config.parse_memory
        )
        arguments = {
            "digest": version.digest,
            "unchanged": unchanged,
            "per_file": limits.per_file,
            "phase": limits.phase,
            "venvs": venvs,
            "memory": limits.memory,
        }
        environ = {dag_versions.HEAD_VARIABLE: version.digest}
        parsed = self._in_child(child_targets.PARSE, arguments, environ, limits.at_most)
        return {"because": list(need.reasons), "version": version.digest[:12], **parsed}

    def _in_child(
        self, target: str, arguments: dict[str, Any], environ: Mapping[str, str], seconds: float
    ) -> dict[str, Any]:
        """Run a target in a child and return its result, or ``{"error": ...}``."""
        if self._lock.lost:
            return {"error": "the lock was lost"}
        try:
            with child_of(self._zygote, target, arguments, environ) as child, self._worker.is_(child):
                outcome = child.wait(seconds)
        except ZygoteError as error:
            log.error("%s could not be started: %s", target, error)
            return {"error": str(error)}
        if outcome is None:
            log.error("%s did not end within %g s and was killed", target, seconds)
            return {"error": f"it did not end within {seconds:g} s"}
        if outcome.error is not None:
            log.error("%s failed: %s", target, outcome.error)
            return {"error": outcome.error}
        result: dict[str, Any] = outcome.result
        return result

    def _seconds_left(self) -> float:
        """Return the time for scheduling: what parsing left of the run's, but never nothing."""
        used = time.monotonic() - self._started
        return max(self._config.max_run_seconds - used, self._config.max_run_seconds * PARSE_SHARE)

    def _leave(self, scheduled: Mapping[str, Any]) -> None:
        env, connection = self._resources.env, self._lock.connection
        try:
            jobs.leave_healthy(connection, env, scheduled["job_id"], scheduled["hostname"])
            jobs.prune(connection, env, jobs.SCHEDULER_JOB)
        except psycopg2.Error as error:
            log.warning("the scheduler's job row could not be refreshed: %s", " ".join(str(error).split()))

    def _callbacks_wait(self) -> bool:
        """Tell whether scheduling left callbacks, which only the parse phase of another run executes."""
        try:
            return due.callbacks_wait(self._lock.connection)
        except psycopg2.Error as error:
            log.warning("whether callbacks wait is unknown: %s", " ".join(str(error).split()))
            return False


def _require_ready(connection: Connection, env: str) -> None:
    ownership.require(connection, env)
    schema.require_current(connection, env)


def _journal(resources: ResourceNames, reason: str) -> history.Journal:
    return history.Journal(_state(resources), reason)


def _state(resources: ResourceNames) -> modal.Dict:
    import modal

    return modal.Dict.from_name(resources.state_dict)


def _note_of_venv(level: str, text: str) -> None:
    log.log(logging.getLevelName(level.upper()), "%s", text)


def _message(summary: Mapping[str, Any]) -> str | None:
    """Return what kept a run from its work, if anything did."""
    errors = [
        part["error"] for part in (summary.get("parse"), summary.get("schedule")) if part and "error" in part
    ]
    return summary.get("message") or "; ".join(errors) or None


def _take_wish(resources: ResourceNames) -> None:
    try:
        wish = wakeup.take_wish(_state(resources))
    except Exception as error:
        # Left behind, it keeps others from waking until the tick; this run is worth doing all the same.
        log.warning("the wake-up could not be taken: %s: %s", type(error).__name__, error)
        return
    if wish:
        log.info("woken by %s", wish.get("reason"))


def _ask_for_another(resources: ResourceNames, reason: str) -> None:
    try:
        wakeup.request_run(resources, reason)
    except Exception as error:
        log.warning(
            "no further run could be asked for: %s: %s; the schedule will", type(error).__name__, error
        )

"""What does a triggerer's entry process do? It holds the triggerer's lock and has the work done by a child.

As with the scheduler, the lock says who lives, and when it is lost the child dies before anything else
happens: two triggerers of one environment would take each other's triggers away, which looks to a trigger
like a person who cancels it. Under the lock, what a killed predecessor had is free at once.

The child is replaced when the user's own triggers changed, and only then: every other trigger keeps what it
has in memory.
"""

from __future__ import annotations

import logging
import signal
import time
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

from airflow_provider_modal import airflow_settings
from airflow_provider_modal.child_work import Worker, child_of
from airflow_provider_modal.container.zygote import Child, Outcome, Zygote
from airflow_provider_modal.db import ownership, schema
from airflow_provider_modal.db.connect import without_password
from airflow_provider_modal.db.lock import AdvisoryLock, LockHeldError
from airflow_provider_modal.names import ResourceNames
from airflow_provider_modal.scheduler import jobs
from airflow_provider_modal.triggerer import SLICE_SECONDS, code, health, keeper, need
from airflow_provider_modal.triggerer.logs import TriggerLogs
from airflow_provider_modal.triggerer.run import RUN
from airflow_provider_modal.volume import dag_versions

log = logging.getLogger(__name__)

LINGER_SECONDS = 30.0
"""How long to stay after the last trigger: what was resumed is often deferred again soon."""
PREDECESSOR_SECONDS = 15.0
"""How long to wait for a former triggerer to let go of the lock."""
LOOK_SECONDS = 5.0
END_SECONDS = 40.0
"""What a child may take to end: Airflow gives triggers two times 10 seconds for that."""

IN_VAIN = 3
"""After so many children in a row from whose triggers nothing came, what still waits is left to the next
triggerer: Airflow may not run them, or their process die of them."""


def run(zygote: Zygote, reason: str = "", seconds: float = SLICE_SECONDS) -> dict[str, Any]:
    """Run triggers until there are none, or hand over when the time is used up; return what was done.

    :param reason: who asked for it, for the log.
    :param seconds: when to hand over.
    :raises ModalflowError: the database can't be reached or refuses us.
    """
    resources = airflow_settings.deployed_names()
    lock = AdvisoryLock(
        airflow_settings.database_url(),
        application_name=need.holder_name(resources.env),
        key=need.LOCK_KEY,
        owner="triggerer",
    )

    def require_ready(connection: Connection) -> None:
        ownership.require(connection, resources.env)
        schema.require_current(connection, resources.env)

    try:
        lock.acquire(wait=PREDECESSOR_SECONDS, ready=require_ready)
    except (LockHeldError, ownership.OwnershipError, schema.SchemaError) as error:
        log.warning("this triggerer does nothing: %s", error)
        return {"outcome": "not ready", "reason": reason, "message": str(error)}
    journal = _journal(resources)
    with lock:
        journal.begin()
        try:
            summary = _Slice(zygote, lock, resources, time.monotonic() + seconds).work()
        except Exception as error:
            journal.end(without_password(f"{type(error).__name__}: {error}"))
            raise
        # Who took the lock writes what is known from now on.
        if not lock.lost:
            journal.end(summary.get("error"))
    if summary["outcome"] == "budget":
        keeper.start(resources, "hand-over")
    summary = {"reason": reason, **summary}
    log.info("triggerer: %s", summary)
    return summary


def _journal(resources: ResourceNames) -> health.Journal:
    import modal

    return health.Journal(modal.Dict.from_name(resources.state_dict), need.holder_name(resources.env))


class _Slice:
    """One triggerer under the lock."""

    def __init__(self, zygote: Zygote, lock: AdvisoryLock, resources: ResourceNames, ends: float) -> None:
        self._zygote = zygote
        self._lock = lock
        self._resources = resources
        self._ends = ends
        self._worker = Worker()
        self._files = code.open_files()
        self._logs = TriggerLogs(self._files, airflow_settings.log_folder())
        self._code = code.Code()
        self._in_vain = 0

    def work(self) -> dict[str, Any]:
        """Run children until there is nothing more to do."""
        connection = self._lock.connection
        ended = jobs.end_predecessors(connection, self._resources.env, jobs.TRIGGERER_JOB)
        summary: dict[str, Any] = {"outcome": "idle", "predecessors": ended, "children": 0, "events": 0}
        if not need.look(connection).waiting:
            return summary
        try:
            with self._logs, self._lock.watch(self._worker.end):
                jobs.prune(connection, self._resources.env, jobs.TRIGGERER_JOB)
                while self._piece(summary) or self._is_wanted_again(summary):
                    pass
        except psycopg2.Error:
            # Also what a statement gets that was under way when the connection died.
            if self._lock.ping():
                raise
        if self._lock.lost:
            log.error("the triggerer's lock was lost and its child killed")
            summary["outcome"] = "lost the lock"
        return summary

    def _piece(self, summary: dict[str, Any]) -> bool:
        """Run one child to its end; return whether another one follows."""
        self._code, _ = code.current(self._lock.connection, self._files)
        arguments = {
            "env": self._resources.env,
            "max_seconds": self._ends - time.monotonic(),
            "linger_seconds": LINGER_SECONDS,
            "folder": None if self._code.folder is None else str(self._code.folder),
        }
        environ = {dag_versions.HEAD_VARIABLE: self._code.digest} if self._code.digest else {}
        with child_of(self._zygote, RUN, arguments, environ) as child, self._worker.is_(child):
            outcome, replaced = self._await(child)
        self._logs.child_ended()
        summary["children"] += 1
        if outcome is None or outcome.error is not None:
            error = f"it did not end within {END_SECONDS:g} s" if outcome is None else outcome.error
            log.error("the triggerer failed: %s", error)
            summary.update(outcome="failed", error=error)
            return False
        done = outcome.result["events"] + outcome.result["failures"]
        self._in_vain = 0 if done else self._in_vain + 1
        summary["events"] += outcome.result["events"]
        summary["outcome"] = outcome.result["stopped"]
        return replaced and summary["outcome"] == "signal"

    def _is_wanted_again(self, summary: dict[str, Any]) -> bool:
        """Tell whether triggers came while a child ended by itself, or were left by one that died.

        Nobody else starts a triggerer for them: one lives for as long as we hold the lock.
        """
        if summary["outcome"] not in ("idle", "died") or not need.look(self._lock.connection).waiting:
            return False
        if self._in_vain < IN_VAIN:
            return True
        died = "died" if summary["outcome"] == "died" else "ended"
        summary["error"] = f"{IN_VAIN} processes in a row {died} without anything from the triggers they ran"
        return False

    def _await(self, child: Child) -> tuple[Outcome | None, bool]:
        """Wait for a child's end, and bring it about when there is new code for its triggers.

        :return: how it ended, None if it had to be killed; and whether new code was the cause.
        """
        told: float | None = None
        while (outcome := child.wait(LOOK_SECONDS)) is None:
            if told is None and self._is_outdated():
                log.info("triggers begin again with the current version of their code")
                told = time.monotonic()
                child.send_signal(signal.SIGTERM)
            elif time.monotonic() > (self._ends if told is None else told) + END_SECONDS:
                break
        return outcome, told is not None

    def _is_outdated(self) -> bool:
        now, modules = code.current(self._lock.connection, self._files)
        if now.digest == self._code.digest or now.folder is None:
            return False
        return any(now.holds(module) or self._code.holds(module) for module in modules)

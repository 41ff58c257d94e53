"""What does a report of the dispatcher mean to Airflow: an event, a task queued again, or nothing?

Used on the scheduler's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.state import TaskInstanceState

from airflow_provider_modal import wire
from airflow_provider_modal.executors import database, others, reports
from airflow_provider_modal.executors.cancellations import Cancellations
from airflow_provider_modal.executors.counters import Counters
from airflow_provider_modal.executors.ledger import Flight, Ledger
from airflow_provider_modal.executors.task_events import storable
from airflow_provider_modal.executors.telling import Telling
from airflow_provider_modal.executors.waiting import Waiting

log = logging.getLogger(__name__)

MOVED_ON_LOOKS = 2
"""After how many looks a call that a container has is ended which Airflow no longer waits for: a worker that
is well ends by itself within the interval between two, and reports the end of what it ran."""


class Events(Protocol):
    """The part of an Airflow executor that its scheduler reads: the slots in use, and the event buffer."""

    running: set[Any]

    def success(self, key: Any, info: Any = None) -> None:
        """Free the slot of ``key`` and note its success."""

    def fail(self, key: Any, info: Any = None) -> None:
        """Free the slot of ``key`` and note its failure."""

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None:
        """Note any event about ``key``."""


class Outcomes:
    """Applies reports to an executor.

    :param counters: counts what is dropped, and what is dispatched again.
    :param waiting: decides about calls that no container takes.
    :param cancel: has the call of a flight ended, for a reason.
    :param alive: whether a task instance runs, with a recent heartbeat.
    :param telling: tells people.
    """

    def __init__(
        self,
        events: Events,
        ledger: Ledger,
        cancellations: Cancellations,
        counters: Counters,
        alive: Callable[[TaskInstanceKey], bool],
        telling: Telling,
        waiting: Waiting,
        cancel: Callable[[Flight, str], None],
    ) -> None:
        self._events = events
        self._ledger = ledger
        self._cancellations = cancellations
        self._counters = counters
        self._alive = alive
        self._telling = telling
        self._waiting = waiting
        self._cancel = cancel

    def apply(self, news: Sequence[reports.Report | reports.Malformed]) -> None:
        """Apply reports in their order; one that can't be processed doesn't keep back the others."""
        for report in news:
            if isinstance(report, reports.Malformed):
                self._counters["malformed_events"] += 1
                continue
            flight = self._ledger.current(report.dispatch)
            try:
                if isinstance(report, reports.Cancelled):
                    self._cancellations.over(report.dispatch)
                elif flight is not None:
                    self._apply_one(flight, report)
                elif isinstance(report, reports.Ended):
                    self._ended_elsewhere(report)
                elif isinstance(report, reports.NotStarted):
                    self._drop(report)
            except Exception:
                # Such as a database that went away: a flight stays and is asked about again. Airflow's
                # scheduler would end with it.
                log.exception("report %s could not be processed", report)
                if flight is not None:
                    flight.question = False

    def fail(self, key: Any, reason: str, *, dispatch: str | None = None, in_log: bool = False) -> None:
        """Note a failure wherever Airflow and people look for it.

        :param dispatch: the one that failed; None if it got none.
        :param in_log: the reason is in the task's log already.
        """
        # Airflow puts it into a transaction with others, where one that is refused would stop its loop.
        reason = storable(reason)
        # First: the slot must be free whatever becomes of the rest.
        self._events.fail(key, info=reason)
        try:
            others.note_failure(key, reason)
            self._telling.failed(key, reason, dispatch=dispatch, in_log=in_log)
        except Exception:
            log.exception("why %s failed is told to the scheduler alone: %s", key, reason)

    def _apply_one(self, flight: Flight, report: reports.Report) -> None:
        if isinstance(report, reports.Submitted):
            flight.call_id = report.call_id
            flight.doubtful |= report.doubtful
            flight.since = time.time()
            _answered(flight)
            self._telling.submitted(flight.key, report.call_id)
            self.tell_call(flight)
        elif isinstance(report, reports.NotSubmitted):
            self._not_submitted(flight, report)
        elif isinstance(report, reports.Ended):
            self._ended(flight, report)
        elif isinstance(report, reports.Unknown):
            self._settle(flight, report.reason, lost=report.lost)
        elif isinstance(report, reports.NotStarted):
            self._not_started(flight, report.reason)
        elif isinstance(report, reports.Waiting):
            if flight.moved_on:
                self._let_go(flight)
            else:
                self._waiting.judge(flight, report.starts)
        elif isinstance(report, reports.Alive) and flight.moved_on >= MOVED_ON_LOOKS:
            self._let_go(flight)
        elif isinstance(report, reports.Unanswered):
            # A call that was given up may have been taken back all the same.
            _answered(flight, flight.give_up)
        else:
            _answered(flight)

    def tell_call(self, flight: Flight) -> None:
        """Have Airflow write down a flight's function call."""
        if isinstance(flight.key, TaskInstanceKey):
            external_id = wire.external_executor_id(flight.dispatch, flight.call_id, flight.origin)
            self._events.change_state(flight.key, TaskInstanceState.QUEUED, external_id, remove_running=False)

    def _not_submitted(self, flight: Flight, report: reports.NotSubmitted) -> None:
        """It fails, unless it runs all the same, in a call whose id never arrived here."""
        flight.doubtful |= report.doubtful
        if flight.doubtful and isinstance(flight.key, TaskInstanceKey) and self._alive(flight.key):
            log.warning("%s runs, although Modal did not answer: %s", flight.key, report.reason)
            _answered(flight)
        else:
            self._finish(flight, report.reason)

    def _not_started(self, flight: Flight, why: str) -> None:
        """Nothing of it ran: another dispatch may do better."""
        if flight.give_up is not None:
            self._finish(flight, flight.give_up)
        elif isinstance(flight.key, TaskInstanceKey):
            self._settle(flight, why)
        else:
            # Of what is no task nobody counts the repetitions.
            self._finish(flight, why)

    def _let_go(self, flight: Flight) -> None:
        """Somebody cleared, marked or deleted the task, and its call waits or hangs all the same."""
        self._counters["moved_on"] += 1
        self._cancel(flight, "Airflow no longer waits for the task: it was cleared, marked or deleted")
        self.forget(flight)

    def _ended(self, flight: Flight, report: reports.Ended) -> None:
        if report.lost_container is not None:
            self._telling.delivered_again(flight.key, report.lost_container)
        if report.outcome == "done":
            # Success of the run, whatever the task's state is: the worker's supervisor has written that.
            self._finish(flight)
        elif self._is_copy(flight, report):
            # The one that runs goes on, and reports itself.
            _answered(flight)
        elif report.outcome == "failed":
            self._finish(flight, report.reason, in_log=report.by_worker)
        else:
            self._settle(flight, "its function call found it taken back by Airflow")

    def _is_copy(self, flight: Flight, report: reports.Ended) -> bool:
        """Whether what ended is a copy that lost, while the other one runs."""
        if not isinstance(flight.key, TaskInstanceKey):
            return report.outcome == "obsolete"
        return flight.doubtful and self._alive(flight.key)

    def _settle(self, flight: Flight, why: str, *, lost: bool = True) -> None:
        """Nobody runs this dispatch (any more): let the scheduler queue it again if it still waits for it."""
        if not isinstance(flight.key, TaskInstanceKey):
            failure = others.settle(flight.key, why, lost=lost)
            if failure is not None:
                self._finish(flight, failure)
            else:
                self.forget(flight)
            return
        settlement = database.settle(flight.key, flight.dispatch, why, lost=lost)
        log.info("dispatch %s of %s: %s; %s", flight.dispatch, flight.key, why, settlement)
        if settlement == "exhausted":
            self._finish(
                flight,
                f"the task was handed to Modal {database.MOST_REQUEUES + 1} times and did not start, the "
                f"last time because {why}; clear the task once that is mended",
            )
        elif settlement == "running":
            # Its heartbeats are watched by Airflow, which fails it when they stop and so frees the slot.
            _answered(flight)
        else:
            if settlement == "requeued":
                self._counters["dispatched_again"] += 1
            self.forget(flight)

    def forget(self, flight: Flight) -> None:
        """Free the slot of a flight without an event."""
        self._ledger.close(flight.key)
        self._events.running.discard(flight.key)

    def _finish(self, flight: Flight, failure: str | None = None, *, in_log: bool = False) -> None:
        self._ledger.close(flight.key, ended=True)
        if failure is None:
            self._events.success(flight.key)
        else:
            self.fail(flight.key, failure, dispatch=flight.dispatch, in_log=in_log)

    def _ended_elsewhere(self, report: reports.Ended) -> None:
        """Something ended that is not on its way here: a callback of a scheduler that is gone, or a copy."""
        callback = others.callback_of(report)
        if callback is None:
            self._drop(report)
        elif report.outcome == "done":
            self._events.success(callback)
        else:
            self._events.fail(callback, info=storable(report.reason or ""))

    def _drop(self, report: reports.Report) -> None:
        self._counters[self._ledger.dropped_as(report.dispatch)] += 1


def _answered(flight: Flight, give_up: str | None = None) -> None:
    flight.question = False
    flight.last_sign = time.time()
    flight.give_up = give_up

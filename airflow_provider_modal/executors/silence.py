"""Which dispatches gave no sign for too long, so that Modal has to be asked about them?

Used on the scheduler's thread.
"""

from __future__ import annotations

import logging
import time
from collections import Counter

from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_provider_modal.executors import database
from airflow_provider_modal.executors.dispatcher import Dispatcher
from airflow_provider_modal.executors.ledger import Flight, Ledger

log = logging.getLogger(__name__)


class Silence:
    """Looks for the silent among the flights of one scheduler.

    :param job_id: of the scheduler, whose task instances these are.
    :param after: seconds without a sign after which Modal is asked.
    :param counters: counts the questions: ``silent_checks``.
    """

    def __init__(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        job_id: int | str | None,
        after: float,
        counters: Counter[str],
    ) -> None:
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._job_id = job_id
        self._after = after
        self._counters = counters
        self._next_look = 0.0

    def look(self) -> None:
        """Ask about flights that gave no sign for a while; one statement, at most once per interval."""
        now = time.time()
        if now < self._next_look or not self._ledger.silent(now, self._after):
            return
        self._next_look = now + self._after / 4
        try:
            self._ledger.touch(self.alive(), now)
        except Exception:
            # Asking Modal about all of them is right as well, only more work.
            log.exception("the database does not tell which tasks are alive")
        for flight in self._ledger.silent(now, self._after):
            self._counters["silent_checks"] += 1
            self.ask(flight, modal=True)

    def alive(self) -> set[TaskInstanceKey]:
        """Return the running task instances with a recent heartbeat; reads the database."""
        return database.fresh(self._job_id, self._after)

    def ask(self, flight: Flight, *, modal: bool) -> None:
        """Ask what became of a flight; see ``Dispatcher.ask``."""
        flight.question = True
        self._dispatcher.ask(flight.dispatch, flight.call_id, modal=modal)

"""Which dispatches gave no sign for too long, so that Modal has to be asked about them?

One statement tells of all of them, at most once per interval however many there are. Used on the scheduler's
thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_provider_modal.executors import database
from airflow_provider_modal.executors.counters import Counters
from airflow_provider_modal.executors.dispatcher import Dispatcher
from airflow_provider_modal.executors.ledger import Flight, Ledger
from airflow_provider_modal.executors.questions import Question

log = logging.getLogger(__name__)

ASKED_PER_SECOND = 10.0
"""About how many flights Modal is asked at most, on average between two looks: each question is several calls
to Modal, whose number must not grow with that of the tasks that wait or run."""
ASKED_LEAST = 16
"""How many of them one look may ask about in any case."""


class Silence:
    """Looks for the silent among the flights of one scheduler.

    :param job_id: of the scheduler, whose task instances these are.
    :param after: seconds without a sign after which Modal is asked.
    :param counters: counts ``silent_looks`` and ``silent_checks``.
    :param forget: frees the slot of a flight that another scheduler has adopted.
    """

    def __init__(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        job_id: int | str | None,
        after: float,
        counters: Counters,
        forget: Callable[[Flight], None],
    ) -> None:
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._job_id = job_id
        self._after = after
        self._counters = counters
        self._forget = forget
        self._next_look = 0.0

    def look(self) -> None:
        """Ask about flights that gave no sign for a while; one statement, at most once per interval. Of too
        many, those that are overdue most come first, and the others with the next looks."""
        now = time.time()
        if now < self._next_look or not self._ledger.silent(now, self._after):
            return
        pause = self._after / 4
        self._next_look = now + pause
        self._counters["silent_looks"] += 1
        live: dict[TaskInstanceKey, database.Live] | None = None
        try:
            live = database.live(self._after)
            self._ledger.touch((key for key, task in live.items() if task.fresh), now)
        except Exception:
            # Asking Modal about all of them is right as well, only more work.
            log.exception("the database does not tell which tasks are alive")
        most = max(ASKED_LEAST, int(ASKED_PER_SECOND * pause))
        for flight in self._ledger.silent(now, self._after)[:most]:
            if live is not None and isinstance(flight.key, TaskInstanceKey):
                task = live.get(flight.key)
                is_ours = task is not None and task.dispatch in (None, flight.dispatch)
                flight.moved_on = 0 if is_ours else flight.moved_on + 1
                if task is not None and is_ours and self._is_anothers(task):
                    log.warning("another scheduler has adopted %s, which was on its way here", flight.key)
                    self._forget(flight)
                    continue
            self._counters["silent_checks"] += 1
            self.ask(flight, modal=True)

    def alive(self, key: TaskInstanceKey) -> bool:
        """Whether a task instance's try runs, with a recent heartbeat; reads its row."""
        return database.is_fresh(key, self._after)

    def ask(self, flight: Flight, *, modal: bool) -> None:
        """Ask what became of a flight; see ``Dispatcher.ask``."""
        flight.question = True
        self._dispatcher.ask(
            Question(flight.dispatch, flight.call_id, modal, flight.function, flight.options)
        )

    def _is_anothers(self, task: database.Live) -> bool:
        return None not in (task.job_id, self._job_id) and str(task.job_id) != str(self._job_id)

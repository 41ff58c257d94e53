"""What did schedulers that are gone leave behind, and how does this one take it over?

Used on the scheduler's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import names, wire
from airflow_provider_modal.executors import database, others, task_call
from airflow_provider_modal.executors.dispatcher import Dispatcher
from airflow_provider_modal.executors.ledger import Flight, Ledger
from airflow_provider_modal.executors.silence import Silence

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

RESULT_AFTER = 15.0
"""Seconds without a heartbeat (one is due every 5) after which an adopted task's result is looked for."""


class Adoption:
    """Takes over for one executor.

    :param running: the executor's slots in use; what is taken over occupies one at once.
    :param after: seconds without a sign after which Modal is asked about a task instance.
    :param serverless: all schedulers share one partition.
    :param team: whose executor it is.
    :param tell_call: tells Airflow a flight's external id.
    """

    def __init__(
        self,
        running: set[Any],
        ledger: Ledger,
        dispatcher: Dispatcher,
        silence: Silence,
        *,
        after: float,
        serverless: bool,
        team: str | None,
        tell_call: Callable[[Flight], None],
    ) -> None:
        self._running = running
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._silence = silence
        self._after = after
        self._serverless = serverless
        self._team = team
        self._tell_call = tell_call

    def task_instances(self, tis: Sequence[TaskInstance]) -> list[TaskInstance]:
        """Take over what has a dispatch; return what has none.

        Without a recent heartbeat it is asked about in the background, beginning with the result that the
        worker may have left. Where no function call is known, the task was never handed to Modal, or its
        scheduler died while it did that: if Airflow still has it ``queued`` it is queued again under a new
        dispatch, and of the two, should the old one have a function call after all, Airflow's compare-and-set
        lets one run (see ``database.settle``).
        """
        database.load_signs(tis)
        left = []
        now = time.time()
        for ti in tis:
            dispatch, call_id = wire.parse_external_executor_id(ti.external_executor_id)
            if dispatch is None:
                left.append(ti)
                continue
            self._running.add(ti.key)
            flight = self._ledger.of_key(ti.key)
            if flight is not None and flight.dispatch == dispatch:
                continue
            flight = Flight(
                dispatch,
                ti.key,
                last_sign=database.last_sign(ti),
                call_id=call_id,
                function=task_call.base_function(ti.queue),
                since=database.queued_at(ti) or now,
            )
            self._ledger.open(flight)
            if not self._serverless:
                self._listen_to_former(flight, ti)
            silence = now - flight.last_sign
            # Beating hearts are not asked about: with many tasks, every run would begin with a question each.
            if call_id is None or silence > RESULT_AFTER:
                self._silence.ask(flight, modal=silence > self._after)
        return left

    def _listen_to_former(self, flight: Flight, ti: TaskInstance) -> None:
        """Collect the end from where the worker will send it: to the scheduler that dispatched the task.

        Which one that was is known only to who adopts from it directly, so the row tells whoever is next.
        """
        noted = wire.origin_of(ti.external_executor_id)
        flight.origin = noted if noted is not None else ti.queued_by_job_id
        if flight.origin is None:
            return
        self._dispatcher.listen(names.job_partition(flight.origin, self._team))
        if noted is None and flight.call_id is not None:
            self._tell_call(flight)

    def callbacks(self, is_queued: Callable[[Any], bool]) -> None:
        """Ask about the callbacks of schedulers that are gone, where all of them are this executor's.

        :param is_queued: tells which ones wait in this executor.
        """
        if not self._serverless or not others.have_one_executor():
            return
        for key in others.callbacks_left_behind(
            lambda key: is_queued(key) or self._ledger.of_key(key) is not None
        ):
            self._running.add(key)
            flight = Flight(key.id, key, last_sign=time.time())
            self._ledger.open(flight)
            self._silence.ask(flight, modal=True)

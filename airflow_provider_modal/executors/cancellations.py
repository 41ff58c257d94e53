"""Which function calls are being cancelled, for whom, and who sees to their end?

What is begun is written into Airflow's event log: people see it at the task instance, and a scheduler that
starts finds what its predecessor had no time for. Used on the scheduler's thread.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import wire
from airflow_provider_modal.executors import cancelling

if TYPE_CHECKING:
    from airflow_provider_modal.executors.dispatcher import Dispatcher
    from airflow_provider_modal.executors.task_events import TaskEvents

log = logging.getLogger(__name__)

TAKEN_OVER_SECONDS = 3600.0
"""How old a cancellation may be whose end a scheduler still sees to that did not begin it."""


class Cancellations:
    """The cancellations of one executor.

    :param events: takes what is to be written.
    :param environment: where the executor's calls are: those of another one, such as another team's, are left
        to its executor.
    """

    def __init__(self, events: TaskEvents, environment: str) -> None:
        self._events = events
        self._environment = environment
        self._keys: dict[str, Any] = {}

    def begin(self, dispatcher: Dispatcher, key: Any, dispatch: str, call_id: str | None, why: str) -> None:
        """Have a dispatch's function call ended.

        :param key: of the task instance.
        :param why: for people.
        """
        from airflow_provider_modal.executors import database

        self._keys[dispatch] = key
        external_id = wire.external_executor_id(dispatch, call_id)
        self._events.note(database.CANCELLED_EVENT, key, f"{external_id} in {self._environment}: {why}")
        dispatcher.cancel(dispatch, call_id, why)

    def take_over(self, dispatcher: Dispatcher) -> None:
        """See to the end of what schedulers that are gone began to cancel; reads the database."""
        from airflow_provider_modal.executors import database

        try:
            found = database.open_cancellations(TAKEN_OVER_SECONDS)
        except Exception as error:
            # Modal's own time limit ends these calls, only later.
            log.warning("the database does not tell which function calls are being cancelled: %s", error)
            return
        for cancellation in found:
            if cancellation.environment != self._environment or cancellation.dispatch in self._keys:
                continue
            self._keys[cancellation.dispatch] = cancellation.key
            left = cancellation.at + cancelling.GRACE - time.time()
            dispatcher.finish_cancel(cancellation.dispatch, cancellation.call_id, max(left, 0.0))

    def over(self, dispatch: str) -> None:
        """Note that a call is over, so that nobody sees to its end again."""
        from airflow_provider_modal.executors import database

        key = self._keys.pop(dispatch, None)
        if key is not None:
            text = f"{dispatch} in {self._environment}: the cancelled call is over"
            self._events.note(database.ENDED_EVENT, key, text)

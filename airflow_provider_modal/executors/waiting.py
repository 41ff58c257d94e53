"""A function call waits at Modal and no container takes it: for how long is that all right?

Containers that end while they start are a fault, of the image or of the code, which may pass: after
``start_timeout`` the call is taken back and its task dispatched again, a bounded number of times. A container
that is not to be had (a scarce GPU, a limit of the profile or the workspace) may be worth a long wait: after
``capacity_timeout`` the task fails. Either way with what Modal tells about it, so that nobody has to guess
why a task is stuck in ``queued``. Used on the scheduler's thread.
"""

from __future__ import annotations

import logging
import time

from airflow_provider_modal.executors.call_state import advice
from airflow_provider_modal.executors.counters import Counters
from airflow_provider_modal.executors.dispatcher import Dispatcher
from airflow_provider_modal.executors.ledger import Flight
from airflow_provider_modal.executors.options import Options
from airflow_provider_modal.executors.starts import Starts

log = logging.getLogger(__name__)

PAUSES_MOST = 10
"""How many times the usual interval the pause between two questions about a call grows to. Thousands may wait
for the same function, and each question about one of them is several calls to Modal."""


class Waiting:
    """Decides about the waiting calls of one executor."""

    def __init__(self, dispatcher: Dispatcher, options: Options, counters: Counters) -> None:
        self._dispatcher = dispatcher
        self._options = options
        self._counters = counters

    def judge(self, flight: Flight, starts: Starts | None) -> None:
        """Let a call wait on, or take it back.

        :param starts: what is known about the function's containers.
        """
        waited = time.time() - flight.since
        said = starts.failure(flight.since) if starts is not None else None
        if said is not None and waited >= self._options.start_timeout:
            self._counters["failed_starts"] += 1
            todo = advice(said) or "look at the function's log in Modal"
            self._take_back(
                flight, f"the containers of {flight.function} end while they start ({said}); {todo}"
            )
        elif waited >= self._options.capacity_timeout:
            known = f" ({starts})" if starts is not None else ""
            flight.give_up = (
                f"no container took the task within {self._options.capacity_timeout:g} s{known}: ask for "
                "resources that are easier to get (gpu, region, cloud), raise max_containers of its worker "
                "profile, or let it wait longer with [modal] capacity_timeout"
            )
            self._take_back(flight, flight.give_up)
        else:
            flight.question = False
            flight.last_sign = time.time()
            usual = self._options.silent_after
            # What may be a failed start is looked at again soon; a queue that is long changes slowly.
            flight.pause = 0.0 if said is not None else min(2 * max(flight.pause, usual), PAUSES_MOST * usual)

    def _take_back(self, flight: Flight, why: str) -> None:
        log.warning("dispatch %s of %s is taken back from Modal: %s", flight.dispatch, flight.key, why)
        assert flight.call_id is not None, "Modal was asked about it"
        flight.question = True
        self._dispatcher.take_back(flight.dispatch, flight.call_id, why)

"""Do the slots in use here agree with the database?

Too many here leave capacity unused, too few start more than allowed; either is a fault of the executor. The
difference is not zero for moments, between an event and its processing; it must not stay.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_provider_modal.executors import database
from airflow_provider_modal.executors.metrics import Metrics

log = logging.getLogger(__name__)


class SlotDrift:
    """Measures the difference once in a while, on a thread of its own.

    :param job_id: of the scheduler.
    :param every: seconds between two measurements.
    """

    def __init__(self, job_id: int | str | None, metrics: Metrics, every: float) -> None:
        self._job_id = job_id
        self._metrics = metrics
        self._every = every
        self._next = time.monotonic() + every
        self._told = 0
        self._thread: threading.Thread | None = None

    def look(self, in_use: Callable[[], Iterable[Any]]) -> None:
        """Measure, if it is time to and the last measurement has ended.

        :param in_use: returns the keys of all workloads that this executor has, waiting ones included.
        """
        if time.monotonic() < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        self._next = time.monotonic() + self._every
        keys = frozenset(key for key in in_use() if isinstance(key, TaskInstanceKey))
        if not keys and not self._told:
            # Nothing runs: a database that sleeps is left alone.
            return
        thread = threading.Thread(target=self._measure, args=(keys,), name="modal-slots", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # The process is at its limit of threads, which must not end the scheduler's loop.
            log.warning("the slots in use are not compared with the database: %s", error)
            return
        self._thread = thread

    def _measure(self, keys: frozenset[TaskInstanceKey]) -> None:
        try:
            self._told = drift(keys, database.in_progress(self._job_id))
        except Exception as error:
            log.warning("the database does not tell which tasks are in progress: %s", error)
            return
        self._metrics.gauge("slot_drift", self._told)


def drift(keys: Collection[TaskInstanceKey], rows: Iterable[tuple[TaskInstanceKey, bool]]) -> int:
    """Return how many slots are in use here, less those in the database.

    :param keys: what is in use here.
    :param rows: what is in progress there, other executors' tasks as well; and whether Modal has it.
    """
    return len(keys) - sum(on_modal or key in keys for key, on_modal in rows)

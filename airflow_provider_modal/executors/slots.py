"""Do the slots in use here agree with the database?

Too many here leave capacity unused, too few start more than allowed; either is a fault of the executor. The
difference is not zero for moments, between an event and its processing; it must not stay.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from typing import Any

from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_provider_modal.executors import database
from airflow_provider_modal.executors.metrics import Metrics

log = logging.getLogger(__name__)

_all: weakref.WeakSet[SlotDrift] = weakref.WeakSet()
"""Of all executors in this process: a scheduler has one for each team, or under several names."""


class SlotDrift:
    """Measures the difference once in a while, on a thread of its own.

    ``look`` and ``close`` belong to the scheduler's thread, which all executors of a scheduler share.

    :param job_id: of the scheduler.
    :param in_use: returns the keys of all workloads that the executor has, waiting ones included.
    :param every: seconds between two measurements.
    """

    def __init__(
        self, job_id: int | str | None, in_use: Callable[[], Iterable[Any]], metrics: Metrics, every: float
    ) -> None:
        self._job_id = job_id
        self._in_use = in_use
        self._metrics = metrics
        self._every = every
        self._next = time.monotonic() + every
        self._told = 0
        self._thread: threading.Thread | None = None
        _all.add(self)

    def close(self) -> None:
        """Measure no more, and be no other executor's neighbour."""
        self._next = float("inf")
        _all.discard(self)

    def look(self) -> None:
        """Measure, if it is time to and the last measurement has ended."""
        if time.monotonic() < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        self._next = time.monotonic() + self._every
        keys = self._keys()
        if not keys and not self._told:
            # Nothing runs: a database that sleeps is left alone.
            return
        thread = threading.Thread(
            target=self._measure, args=(keys, self._keys_of_others()), name="modal-slots", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            # The process is at its limit of threads, which must not end the scheduler's loop.
            log.warning("the slots in use are not compared with the database: %s", error)
            return
        self._thread = thread

    def _keys(self) -> frozenset[TaskInstanceKey]:
        return frozenset(key for key in self._in_use() if isinstance(key, TaskInstanceKey))

    def _keys_of_others(self) -> frozenset[TaskInstanceKey]:
        same_scheduler = (other for other in _all if other is not self and other._job_id == self._job_id)
        return frozenset().union(*(other._keys() for other in same_scheduler))

    def _measure(self, keys: frozenset[TaskInstanceKey], others: frozenset[TaskInstanceKey]) -> None:
        try:
            self._told = drift(keys, others, database.in_progress(self._job_id))
        except Exception as error:
            log.warning("the database does not tell which tasks are in progress: %s", error)
            return
        self._metrics.gauge("slot_drift", self._told)


def drift(
    keys: Collection[TaskInstanceKey],
    others: Collection[TaskInstanceKey],
    rows: Iterable[tuple[TaskInstanceKey, bool]],
) -> int:
    """Return how many slots are in use here, less those in the database.

    What Modal has and no executor of this scheduler knows counts at each of them: the database doesn't say
    whose it was.

    :param keys: what is in use here.
    :param others: what is in use in this scheduler's other executors of this kind.
    :param rows: what is in progress there, other executors' tasks as well; and whether Modal has it.
    """
    return len(keys) - sum(key in keys or (on_modal and key not in others) for key, on_modal in rows)

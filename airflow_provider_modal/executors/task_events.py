"""What is worth telling at a task instance, and how does it get into Airflow's event log?

Airflow's UI shows these rows at the task instance, among its events. A thread of their own writes them, many
in one transaction: the scheduler's loop neither waits for that nor learns of a database that is away. They
don't go through the executor's ``log_task_event``, because what Airflow 3.3 takes from there is gone before
it is written (SQLAlchemy's bulk_save_objects does not keep objects alive that come from a generator).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from airflow.models.taskinstancekey import TaskInstanceKey
from sqlalchemy import exc

log = logging.getLogger(__name__)

SUBMITTED_EVENT = "modal call submitted"
"""Modal has the function call; the text is ``SUBMITTED_TEXT`` and its id."""
SUBMITTED_TEXT = "function call "
FAILED_EVENT = "modal task failed"
"""The executor fails the task; the text is the reason."""
REDELIVERED_EVENT = "modal call delivered again"
"""Modal gave the function call to another container; the text names the one that was lost."""

MOST_PENDING = 10_000
"""Events that are kept while the database is away; then the oldest go."""
MOST_AT_ONCE = 500
MOST_CHARACTERS = 20_000
GATHER_SECONDS = 0.5
"""How long a first event waits for others."""
RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class TaskEvent:
    """One row of Airflow's event log.

    :param event: its name.
    :param key: of the task instance's try.
    :param at: when it happened.
    """

    event: str
    key: TaskInstanceKey
    text: str
    at: datetime


class TaskEvents:
    """Writes events in the background; every method may be called from any thread and returns at once,
    except ``flush`` and ``close``.

    :param write: writes events to the database, in one transaction.
    """

    def __init__(self, write: Callable[[list[TaskEvent]], None] | None = None) -> None:
        self._write = write or _write
        self.dropped = 0
        """Events that were never written: too many while the database was away, or refused by it."""
        self._pending: deque[TaskEvent] = deque()
        self._writing = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._hurry = threading.Event()

    def note(self, event: str, key: Any, text: str) -> None:
        """Write an event about a task instance; other workloads have no event log.

        :param event: its name, such as ``SUBMITTED_EVENT``.
        """
        if not isinstance(key, TaskInstanceKey):
            return
        with self._changed:
            self._pending.append(TaskEvent(event, key, storable(text), datetime.now(timezone.utc)))
            self._shorten()
            if self._thread is None:
                self._start()
            self._changed.notify_all()

    def _start(self) -> None:
        self._hurry.clear()
        thread = threading.Thread(target=self._run, name="modal-task-events", daemon=True)
        # Before it runs, because it ends when it is not the one.
        self._thread = thread
        try:
            thread.start()
        except RuntimeError as error:
            # The process is at its limit of threads, which must not end the scheduler's loop.
            self._thread = None
            log.warning("events about tasks are not written before the next one: %s", error)

    def flush(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until everything is written; return whether it is."""
        self._hurry.set()
        try:
            with self._changed:
                return self._changed.wait_for(lambda: not self._pending and not self._writing, timeout)
        finally:
            self._hurry.clear()

    def close(self, timeout: float) -> None:
        """Write what is left within ``timeout`` seconds and end the thread; a later note starts it again."""
        if not self.flush(timeout):
            with self._changed:
                left = len(self._pending) + self._writing
            log.warning("%d events about tasks could not be written to Airflow's event log", left)
        with self._changed:
            self._thread = None
            self._changed.notify_all()

    def _run(self) -> None:
        me = threading.current_thread()
        told = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._thread is not me)
                if self._thread is not me:
                    return
            self._hurry.wait(GATHER_SECONDS)
            batch = self._take()
            try:
                self._write(batch)
            except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
                if not told:
                    # Without the statement and its values.
                    why = getattr(error, "orig", None) or error
                    log.warning("%d events about tasks are not written yet: %s", len(batch), why)
                    told = True
                self._put_back(batch)
                self._pause()
            except Exception:
                # It would be refused again, and everything after it would wait for it.
                log.exception("%d events about tasks can't be written", len(batch))
                self._done(dropped=len(batch))
            else:
                told = False
                self._done()

    def _take(self) -> list[TaskEvent]:
        with self._changed:
            batch = [self._pending.popleft() for _ in range(min(len(self._pending), MOST_AT_ONCE))]
            self._writing = len(batch)
            return batch

    def _put_back(self, batch: list[TaskEvent]) -> None:
        with self._changed:
            self._pending.extendleft(reversed(batch))
            self._writing = 0
            self._shorten()

    def _done(self, dropped: int = 0) -> None:
        with self._changed:
            self._writing = 0
            self.dropped += dropped
            self._changed.notify_all()

    def _shorten(self) -> None:
        while len(self._pending) > MOST_PENDING:
            self._pending.popleft()
            self.dropped += 1

    def _pause(self) -> None:
        """Wait before the next attempt; less if somebody waits for it."""
        until = time.monotonic() + RETRY_SECONDS
        while time.monotonic() < until and not self._hurry.wait(0.5):
            pass
        time.sleep(0.2)


def storable(text: str) -> str:
    """Return a text that PostgreSQL takes: output of a task may hold what is no text there."""
    whole = text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return whole if len(whole) <= MOST_CHARACTERS else whole[: MOST_CHARACTERS - 1] + "…"


def _write(events: list[TaskEvent]) -> None:
    # Late, because it imports all of Airflow's models.
    from airflow_provider_modal.executors import database

    database.write_events(events)

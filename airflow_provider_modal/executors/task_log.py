"""What has a running task written so far, for a page of Airflow's UI?

Asked in the API server, of an executor that is never started. From the segments that the worker ships to the
environment's Volume every few seconds; before the first one is there, what the call's container printed
according to Modal. A page is shown in any case: what can't be had in time is a sentence.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import wire
from airflow_provider_modal.dashboard import call_url
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.executors.account import Account
from airflow_provider_modal.log import reader
from airflow_provider_modal.modal_errors import translated

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_provider_modal.names import ResourceNames
    from airflow_provider_modal.volume.files import Entry, VolumeFiles

log = logging.getLogger(__name__)

PAGE_SECONDS = 8.0
"""Seconds that a page may wait for Modal."""
SLOT_SECONDS = 2.0
"""Of these, how many for the pages before it."""
MOST_AT_ONCE = 8
"""Pages that may wait at the same time; a Modal that is away must not use up the API server's threads."""
MOST_BYTES = 4 * 1024 * 1024
"""How much of a log's end one page shows."""
CACHE_BYTES = 16 * 1024 * 1024
"""How much of what was read is kept for the next look at the same page: segments never change."""
CALL_LOG_ENTRIES = 200


@dataclass(frozen=True)
class Answer:
    """A log, as far as it could be had.

    :param sources: where it is from, and what is missing; never empty.
    :param lines: as they were written.
    """

    sources: list[str]
    lines: list[str]


def key_of(ti: Any, try_number: int) -> tuple[wire.TaskKey, str | None]:
    """Return a task instance's try, and its function call if that is known."""
    key = ti.key
    _, call_id = wire.parse_external_executor_id(ti.external_executor_id)
    task = wire.TaskKey(key.dag_id, key.task_id, key.run_id, try_number, key.map_index)
    # Of another try the task instance doesn't tell it.
    return task, call_id if key.try_number == try_number and wire.is_call_id(call_id) else None


def heading(call_id: str | None) -> str:
    """Return where a task runs."""
    if call_id is None:
        return "The task runs on Modal, in a function call whose id is not known yet."
    return f"The task runs on Modal, in function call {call_id}: {call_url(call_id)}"


class _TooManyError(Exception):
    """So many pages wait already that this one was not begun."""


class TaskLogs:
    """Reads logs of one environment's running tasks; safe to share between threads.

    :param account: whose token to use.
    """

    def __init__(self, resources: ResourceNames, account: Account | None = None) -> None:
        self._resources = resources
        self._account = account or Account()
        self._cache = _Cache(CACHE_BYTES)
        self._slots = threading.BoundedSemaphore(MOST_AT_ONCE)

    def read(self, key: wire.TaskKey, call_id: str | None, *, timeout: float = PAGE_SECONDS) -> Answer:
        """Return the end of a try's log; never raises.

        :param call_id: the function call that runs it, if it is known.
        :param timeout: seconds after which the answer is that Modal does not answer.
        """
        try:
            return self._in_time(lambda: self._read(key, call_id), timeout)
        except _TooManyError:
            why = f"{MOST_AT_ONCE} other pages are waiting for logs; reload this one"
        except (concurrent.futures.TimeoutError, TimeoutError):
            why = f"Modal has not answered within {timeout:g} s"
        except ModalflowError as error:
            why = str(error)
        except Exception as error:
            log.exception("the log of %s can't be read", key)
            why = f"{type(error).__name__}: {error}"
        return Answer([f"The log can't be read at the moment: {why}. The task is not affected by that."], [])

    def _in_time(self, work: Callable[[], Answer], timeout: float) -> Answer:
        """Return what ``work`` returns on a thread of its own, which is abandoned after ``timeout``."""
        until = time.monotonic() + timeout
        if not self._slots.acquire(timeout=min(timeout, SLOT_SECONDS)):
            raise _TooManyError
        outcome: concurrent.futures.Future[Answer] = concurrent.futures.Future()
        # A future that runs can't be cancelled: the thread would be surprised by a cancelled one.
        outcome.set_running_or_notify_cancel()

        def run() -> None:
            try:
                outcome.set_result(work())
            except BaseException as error:
                outcome.set_exception(error)
            finally:
                self._slots.release()

        try:
            threading.Thread(target=run, name="modal-task-log", daemon=True).start()
        except BaseException:
            self._slots.release()
            raise
        return outcome.result(max(until - time.monotonic(), 0.0))

    def _read(self, key: wire.TaskKey, call_id: str | None) -> Answer:
        import modal

        from airflow_provider_modal.volume.files import VolumeFiles

        self._account.connect()
        volume = modal.Volume.from_name(self._resources.volume, **self._account.place)
        files = _CachedFiles(VolumeFiles(volume, deadline=PAGE_SECONDS), self._cache)
        tail = reader.tail(
            files, key.dag_id, key.run_id, key.task_id, key.map_index, key.try_number, most_bytes=MOST_BYTES
        )
        if tail is not None:
            sources = [f"Log so far: Volume {self._resources.volume}, {tail.folder}"]
            if tail.left_out:
                left_out = f"{tail.left_out / 2**20:.1f} MiB"
                sources.append(f"Only its end is shown while the task runs; {left_out} come before it.")
            return Answer(sources, tail.lines)
        if call_id is None:
            return Answer(["The task has no function call yet."], [])
        lines = asyncio.run(_call_log(call_id, self._account))
        waits = "The task's own log begins once its container has taken it; until then"
        if not lines:
            return Answer([f"{waits} there is nothing to show."], [])
        return Answer([f"{waits} this is what function call {call_id} printed, from Modal."], lines)


async def _call_log(call_id: str, account: Account) -> list[str]:
    """Return the last lines that a function call printed, in the form of Airflow 3's task logs.

    :raises ModalflowError: Modal does not answer.
    """
    import modal

    lines = []
    with translated(f"read the log of function call {call_id}"):
        call = modal.FunctionCall.from_id(call_id, **account.client)
        async for entry in call.logs.tail.aio(CALL_LOG_ENTRIES):
            lines += [_line(text, entry.timestamp) for text in entry.message.splitlines()]
    return lines


def _line(text: str, at: datetime) -> str:
    return json.dumps(
        {"timestamp": at.isoformat(), "level": "info", "event": text, "logger": "modal"}, ensure_ascii=False
    )


class _Cache:
    """The files read last, up to a number of bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._contents: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str) -> bytes | None:
        with self._lock:
            content = self._contents.get(path)
            if content is not None:
                self._contents.move_to_end(path)
            return content

    def put(self, path: str, content: bytes) -> None:
        with self._lock:
            if path in self._contents:
                return
            self._contents[path] = content
            self._size += len(content)
            while self._size > self._most:
                _, oldest = self._contents.popitem(last=False)
                self._size -= len(oldest)


class _CachedFiles:
    """Files of a Volume that never change, so that each is read once; see ``reader.SideBySide``."""

    def __init__(self, files: VolumeFiles, cache: _Cache) -> None:
        self._files = files
        self._cache = cache

    def list(self, path: str, recursive: bool = False) -> list[Entry]:
        return self._files.list(path, recursive)

    def read_many(self, paths: Sequence[str]) -> Mapping[str, bytes]:
        found = {path: content for path in paths if (content := self._cache.get(path)) is not None}
        if missing := [path for path in paths if path not in found]:
            for path, content in self._files.read_many(missing).items():
                self._cache.put(path, content)
                found[path] = content
        return found

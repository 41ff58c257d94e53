"""What has a task written, for a page of Airflow's UI?

Asked in the API server, of an executor that is never started. From the segments that the worker ships to the
environment's Volume every few seconds; where they are missing, because the container was lost or has only
begun, what it printed according to Modal. A page is shown in any case: what can't be had in time is a
sentence.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_modal import wire
from airflow_provider_modal.dashboard import call_url
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.executors.account import Account
from airflow_provider_modal.executors.deployed import Deployed
from airflow_provider_modal.executors.owner import Owner
from airflow_provider_modal.log import attempt, call_log, segments
from airflow_provider_modal.log.attempt import Attempt
from airflow_provider_modal.log.lines import INCOMPLETE, LOGGER
from airflow_provider_modal.log.lines import line as line_of_ours

if TYPE_CHECKING:
    from airflow_provider_modal.names import ResourceNames
    from airflow_provider_modal.volume.files import Entry, VolumeFiles

T = TypeVar("T")

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
READ_SECONDS = 30.0
"""Seconds that one piece of a long log may take."""
END_SECONDS = 3.0
"""Seconds that a page waits for the end of a log whose task has just ended: nobody asks for it again."""
JUST_ENDED = 30.0
"""Seconds after a task's end in which that is worth while."""
FAILED = frozenset(("failed", "up_for_retry", "restarting", "upstream_failed"))
"""States of tasks that may not have ended by themselves."""
_OURS = f'"logger": "{LOGGER}"'
"""In lines of ours."""
MOST_CALLS = 3
"""Of how many lost containers the output is looked for at Modal."""


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


def logs_of(owner: Owner) -> TaskLogs:
    """Return what reads the logs of an executor's tasks: one for each of them in this process.

    :raises ConfigError: its options don't say where the logs are.
    """
    options = owner.options()
    key = owner, options.environment, options.connection_id
    with _lock:
        if key not in _logs:
            deployed = Deployed.find(options, team=owner.team)
            _logs[key] = TaskLogs(deployed.resources, deployed.account)
        return _logs[key]


_logs: dict[tuple[Owner, str | None, str | None], TaskLogs] = {}
_lock = threading.Lock()


class _TooManyError(Exception):
    """So many pages wait already that this one was not begun."""


class TaskLogs:
    """Reads logs of one environment's tasks; safe to share between threads.

    :param account: whose token to use.
    """

    def __init__(self, resources: ResourceNames, account: Account | None = None) -> None:
        self._resources = resources
        self._account = account or Account()
        self._cache = _Cache(CACHE_BYTES)
        self._slots = threading.BoundedSemaphore(MOST_AT_ONCE)

    def read(self, key: wire.TaskKey, call_id: str | None, *, timeout: float = PAGE_SECONDS) -> Answer:
        """Return the end of a running try's log; never raises.

        :param call_id: the function call that runs it, if it is known.
        :param timeout: seconds after which the answer is that Modal does not answer.
        """
        try:
            return self._in_time(lambda: self._read(key, call_id), timeout)
        except Exception as error:
            told, _ = self._unreadable(key, error)
            return Answer([f"{'; '.join(told)}. The task is not affected by that."], [])

    def _in_time(self, work: Callable[[], T], timeout: float, patience: float | None = None) -> T:
        """Return what ``work`` returns on a thread of its own, which is abandoned after ``timeout``.

        :param patience: seconds to wait for the pages before it; ``SLOT_SECONDS`` by default.
        """
        until = time.monotonic() + timeout
        if not self._slots.acquire(timeout=min(timeout, SLOT_SECONDS if patience is None else patience)):
            raise _TooManyError
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
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
        files = _CachedFiles(self.files(), self._cache)
        whole = attempt.find(files, key)
        if whole.pieces:
            end = whole.end(MOST_BYTES)
            sources = [f"Log so far: Volume {self._resources.volume}, {whole.log}"]
            if end.size < whole.size:
                left_out = f"{(whole.size - end.size) / 2**20:.1f} MiB"
                sources.append(f"Only its end is shown while the task runs; {left_out} come before it.")
            return Answer(sources, list(end.lines(files.read_many)))
        if call_id is None:
            return Answer(["The task has no function call yet."], [])
        lines = [line.as_log() for line in call_log.printed(call_id, self._account.client)]
        waits = "The task's own log begins once its container has taken it; until then"
        if not lines:
            return Answer([f"{waits} there is nothing to show."], [])
        return Answer([f"{waits} this is what function call {call_id} printed, from Modal."], lines)

    def files(self) -> VolumeFiles:
        """Return the Volume that the logs are on; blocks while a connection is read.

        :raises ModalflowError: the connection with the token can't be used.
        """
        import modal

        from airflow_provider_modal.volume.files import VolumeFiles

        self._account.connect()
        volume = modal.Volume.from_name(self._resources.volume, **self._account.place)
        return VolumeFiles(volume, deadline=PAGE_SECONDS)

    def stream(
        self, key: wire.TaskKey, call_id: str | None, state: str | None, ended_at: float | None
    ) -> tuple[list[str], Iterator[str] | None]:
        """Return where the whole log of a try is that does not run, and its lines; never raises.

        :param call_id: the function call that ran it last, if it is known.
        :param state: of the task instance.
        :param ended_at: when the task ended, in seconds since the epoch.
        :return: without lines if there is no log.
        """
        try:
            whole = self._in_time(lambda: self._find(key, state, ended_at), PAGE_SECONDS)
        except Exception as error:
            return self._unreadable(key, error)
        where = f"Volume {self._resources.volume}, {whole.log}"
        if whole.pieces:
            return [f"Log: {where}"], self._lines(key, whole, state, call_id)
        if call_id is None or state not in FAILED:
            return [f"No log of this try: {where}"], None
        try:
            printed = self._in_time(lambda: call_log.printed(call_id, self._account.client), PAGE_SECONDS)
        except Exception as error:
            return self._unreadable(key, error)
        if not printed:
            return [f"No log of this try: {where}, nor did function call {call_id} print anything"], None
        source = f"The task wrote no log; this is what function call {call_id} printed, from Modal."
        return [source], (line.as_log() for line in printed)

    def _find(self, key: wire.TaskKey, state: str | None, ended_at: float | None) -> Attempt:
        """Return what there is, after a moment if the end of it may be on its way."""
        files = self.files()
        waits_until = time.monotonic() + END_SECONDS
        while True:
            found = attempt.find(files, key)
            if found.ended or ended_at is None or time.time() - ended_at > JUST_ENDED:
                return found
            if time.monotonic() >= waits_until:
                return found
            time.sleep(0.5)

    def _lines(
        self, key: wire.TaskKey, whole: Attempt, state: str | None, call_id: str | None
    ) -> Iterator[str]:
        """Yield the lines of all writers, each of a lost one followed by what Modal has from it besides."""
        writers = whole.writers()
        lost = _lost(writers, state)
        try:
            for number, writer in enumerate(writers):
                shipped = call_log.Shipped()
                of_call, incomplete = call_id, number in lost
                for line in shipped.passing(writer.lines(self._read_many)):
                    yield line
                    if _OURS not in line:
                        continue
                    of_call = call_log.call_of(line) or of_call
                    # Of a container that shipped nothing, only others tell.
                    incomplete = incomplete or (not lost and INCOMPLETE in line)
                if incomplete:
                    yield from self._unshipped(of_call, shipped)
        except Exception as error:
            _, told = self._unreadable(key, error)
            yield from told

    def _read_many(self, paths: Sequence[str]) -> Mapping[str, bytes]:
        return self._in_time(lambda: self.files().read_many(paths), READ_SECONDS, READ_SECONDS)

    def _unshipped(self, call_id: str | None, shipped: call_log.Shipped) -> Iterator[str]:
        """Yield what a container that was lost printed and did not get onto the Volume."""
        if call_id is None:
            return
        try:
            printed = self._in_time(lambda: call_log.printed(call_id, self._account.client), PAGE_SECONDS)
        except Exception as error:
            yield _line("warning", f"What function call {call_id} printed can't be read: {_why(error)}")
            return
        if missing := list(shipped.missing(printed)):
            # Airflow orders lines by time.
            yield call_log.Line(
                min(line.at for line in missing),
                "The container was lost before its log was complete. What follows is from Modal's log of "
                f"function call {call_id}.",
                "warning",
            ).as_log()
            yield from (line.as_log() for line in missing)

    def _unreadable(self, key: wire.TaskKey, error: Exception) -> tuple[list[str], Iterator[str]]:
        if not isinstance(
            error, (ModalflowError, _TooManyError, TimeoutError, concurrent.futures.TimeoutError)
        ):
            log.exception("the log of %s can't be read", key)
        told = f"The log can't be read at the moment: {_why(error)}"
        return [told], iter([_line("error", told)])


def _lost(writers: Sequence[Attempt], state: str | None) -> set[int]:
    """Return which of a log's writers were containers that did not live to its end, the last of them.

    A task may fail for other reasons while its container still ships; then nothing of it is with Modal alone.
    """
    tasks = [number for number, writer in enumerate(writers) if not _is_trigger(writer)]
    open_ends = [number for number in tasks if not writers[number].ended]
    if open_ends and open_ends[-1] == tasks[-1] and state not in FAILED:
        open_ends.pop()
    return set(open_ends[-MOST_CALLS:])


def _is_trigger(writer: Attempt) -> bool:
    return writer.pieces[0].segment.dispatch.startswith(segments.TRIGGER)


def _line(level: str, text: str) -> str:
    return line_of_ours(level, text).decode().rstrip()


def _why(error: Exception) -> str:
    if isinstance(error, _TooManyError):
        return f"{MOST_AT_ONCE} other pages are waiting for logs; reload this one"
    # Another class before Python 3.11.
    if isinstance(error, (concurrent.futures.TimeoutError, TimeoutError)):
        return "Modal has not answered in time"
    if isinstance(error, ModalflowError):
        return str(error)
    return f"{type(error).__name__}: {error}"


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
    """Files of a Volume that never change, so that each is read once; see ``attempt.Files``."""

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

"""What containers print: kept in memory, bounded, read live (AppGetLogs) or afterwards (AppFetchLogs,
AppCountLogs).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2 as api

from local_modal.rpc import Service

ENTRIES_KEPT = 100_000
CHARACTERS_KEPT = 64 * 2**20
POLL_SECONDS = 55.0
ENDING_GRACE = 10.0
"""Seconds that the log of an ended app waits for its last containers."""


@dataclass(frozen=True)
class LogEntry:
    """A piece of output, usually a line."""

    number: int
    time: float
    app_id: str
    function_id: str
    call_id: str
    input_id: str
    task_id: str
    descriptor: int
    """1 = stdout, 2 = stderr, 3 = said by the server."""
    text: str


class LogService(Service):
    """App*Logs RPCs; the workers `append`."""

    async def start(self) -> None:
        self._entries: deque[LogEntry] = deque()
        self._characters = 0
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        self._ended: dict[str, float] = {}

    def append(
        self,
        *,
        app_id: str,
        function_id: str,
        call_id: str,
        input_id: str,
        task_id: str,
        descriptor: int,
        text: str,
    ) -> None:
        """Keep one piece of output and pass it to those who follow."""
        number, now = next(self._numbers), self.server.clock.time()
        self._entries.append(
            LogEntry(number, now, app_id, function_id, call_id, input_id, task_id, descriptor, text)
        )
        self._characters += len(text)
        while len(self._entries) > ENTRIES_KEPT or self._characters > CHARACTERS_KEPT:
            self._characters -= len(self._entries.popleft().text)
        self._notify()

    def app_ended(self, app_id: str) -> None:
        """Followers of this app get the rest, then the end."""
        self._ended[app_id] = self.server.clock.time()
        self._notify()

    def _notify(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def AppGetLogs(self, request: api.AppGetLogsRequest) -> AsyncIterator[api.TaskLogsBatch]:
        position = int(request.last_entry_id.partition("-")[0] or 0)
        deadline = self.server.clock.time() + (request.timeout or POLL_SECONDS)
        while True:
            changed = self._changed
            new = [entry for entry in self._after(position) if self._matches(entry, request)]
            for entry in new:
                position = entry.number
                yield self._batch(entry)
            ended = self._ended.get(request.app_id)
            if ended is not None and self._settled(request.app_id, ended):
                yield api.TaskLogsBatch(entry_id=f"{position}-0", app_done=True)
                return
            remaining = deadline - self.server.clock.time()
            if remaining <= 0:
                return
            # The end of the last container isn't announced here, hence the short waits once the app has
            # ended.
            pause = min(remaining, 0.1 if ended is not None else remaining)
            try:
                await asyncio.wait_for(changed.wait(), pause)
            except asyncio.TimeoutError:
                pass  # the loop looks at the time itself

    def _settled(self, app_id: str, ended: float) -> bool:
        running = any(task.app_id == app_id for task in self.server.engine.tasks.values())
        return not running or self.server.clock.time() - ended > ENDING_GRACE

    async def AppFetchLogs(self, request: api.AppFetchLogsRequest) -> api.AppFetchLogsResponse:
        found = [entry for entry in self._entries if self._within(entry, request)]
        # The newest ones are what a limit keeps.
        kept = found[-request.limit :] if request.limit else found
        return api.AppFetchLogsResponse(batches=[self._batch(entry) for entry in kept])

    async def AppCountLogs(self, request: api.AppCountLogsRequest) -> api.AppCountLogsResponse:
        width = request.bucket_secs or 60
        start = request.since.ToNanoseconds() / 1e9
        counts: dict[int, Counter[int]] = {}
        for entry in self._entries:
            if self._within(entry, request):
                counts.setdefault(int((entry.time - start) // width), Counter())[entry.descriptor] += 1
        buckets = []
        for index, by_descriptor in sorted(counts.items()):
            moment = Timestamp()
            moment.FromNanoseconds(int((start + index * width) * 1e9))
            buckets.append(
                api.AppCountLogsResponse.LogBucket(
                    bucket_start_at=moment,
                    stdout_logs=by_descriptor[api.FILE_DESCRIPTOR_STDOUT],
                    stderr_logs=by_descriptor[api.FILE_DESCRIPTOR_STDERR],
                    system_logs=by_descriptor[api.FILE_DESCRIPTOR_INFO],
                )
            )
        return api.AppCountLogsResponse(app_id=request.app_id, buckets=buckets)

    def _after(self, number: int) -> list[LogEntry]:
        newer = itertools.takewhile(lambda entry: entry.number > number, reversed(self._entries))
        return list(newer)[::-1]

    def _within(self, entry: LogEntry, request: api.AppFetchLogsRequest | api.AppCountLogsRequest) -> bool:
        if request.HasField("since") and entry.time < request.since.ToNanoseconds() / 1e9:
            return False
        if request.HasField("until") and entry.time >= request.until.ToNanoseconds() / 1e9:
            return False
        return self._matches(entry, request)

    @staticmethod
    def _matches(
        entry: LogEntry, request: api.AppGetLogsRequest | api.AppFetchLogsRequest | api.AppCountLogsRequest
    ) -> bool:
        descriptor = request.file_descriptor if isinstance(request, api.AppGetLogsRequest) else request.source
        input_id = request.input_id if isinstance(request, api.AppGetLogsRequest) else ""
        return (
            (not request.app_id or entry.app_id == request.app_id)
            and (not request.function_id or entry.function_id == request.function_id)
            and (not request.function_call_id or entry.call_id == request.function_call_id)
            and (not request.task_id or entry.task_id == request.task_id)
            and (not input_id or entry.input_id == input_id)
            and (not descriptor or entry.descriptor == descriptor)
            and (not request.search_text or request.search_text in entry.text)
        )

    @staticmethod
    def _batch(entry: LogEntry) -> api.TaskLogsBatch:
        item = api.TaskLogs(
            data=entry.text,
            timestamp=entry.time,
            timestamp_ns=int(entry.time * 1e9),
            file_descriptor=entry.descriptor,  # type: ignore[arg-type]
            function_call_id=entry.call_id,
            input_id=entry.input_id,
            container_id=entry.task_id,
        )
        return api.TaskLogsBatch(
            task_id=entry.task_id,
            function_id=entry.function_id,
            input_id=entry.input_id,
            entry_id=f"{entry.number}-0",
            items=[item],
        )

"""What containers print: read live (AppGetLogs) or afterwards (AppFetchLogs, AppCountLogs), also after a
restart of the server.

Entries carry the machine's own time, whatever the server's clock says: clients ask by theirs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2 as api

from local_modal.logstore import PAGE, TRIM_EVERY, LogEntry, LogStore, Selection
from local_modal.rpc import Service

LOGS_FILE = "logs.db"
POLL_SECONDS = 55.0
ENDING_GRACE = 10.0
"""Seconds that the log of an ended app waits for its last containers."""
ENDING_POLL = 0.1
"""The end of the last container isn't announced to those who follow a log, so they look."""


class LogService(Service):
    """App*Logs RPCs; the workers `append`."""

    async def start(self) -> None:
        self._changed = asyncio.Event()
        self._ended: dict[str, float] = {}
        """Apps that have ended a moment ago, by the monotonic clock."""
        self._store = LogStore(self.server.state_dir / LOGS_FILE, self._notify)
        self._trimmer = asyncio.ensure_future(self._trim())

    async def stop(self) -> None:
        self._trimmer.cancel()
        await self._store.close()

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
        """Keep one piece of output and pass it to those who follow; doesn't wait for anything."""
        base = self.server.functions.base_of(function_id)
        self._store.append(
            LogEntry(0, time.time(), app_id, base, function_id, call_id, input_id, task_id, descriptor, text)
        )

    def app_ended(self, app_id: str) -> None:
        """Followers of this app get the rest, then the end."""
        now = time.monotonic()
        self._ended = {key: ended for key, ended in self._ended.items() if now - ended <= ENDING_GRACE}
        self._ended[app_id] = now
        self._notify()

    async def first_and_last(self, task_id: str) -> tuple[LogEntry, LogEntry] | None:
        """The first and the last thing that a container has printed; None if there is nothing."""
        first = await self._store.read(Selection(task_id=task_id), 1)
        last = await self._store.read(Selection(task_id=task_id), 1, newest=True)
        return (first[0], last[0]) if first and last else None

    def _notify(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def _trim(self) -> None:
        while True:
            await self._store.trim(time.time())
            await asyncio.sleep(TRIM_EVERY)

    async def AppGetLogs(self, request: api.AppGetLogsRequest) -> AsyncIterator[api.TaskLogsBatch]:
        position = int(request.last_entry_id.partition("-")[0] or 0)
        deadline = time.monotonic() + (request.timeout or POLL_SECONDS)
        while True:
            changed = self._changed
            settled = self._settled(request.app_id)  # before the reading: what comes later has been printed
            while True:
                entries = await self._store.read(_followed(request, position), PAGE)
                for entry in entries:
                    position = entry.number
                    yield _batch(entry)
                if len(entries) < PAGE:
                    break
            if settled:
                yield api.TaskLogsBatch(entry_id=f"{position}-0", app_done=True)
                return
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            pause = min(remaining, ENDING_POLL if request.app_id in self._ended else remaining)
            try:
                await asyncio.wait_for(changed.wait(), pause)
            except asyncio.TimeoutError:
                pass  # the loop looks at the time itself

    def _settled(self, app_id: str) -> bool:
        """Whether nothing will be printed any more."""
        app = self.server.apps.apps.get(app_id)
        if app is not None and app.state != api.APP_STATE_STOPPED:
            return False
        running = any(task.app_id == app_id for task in self.server.engine.tasks.values())
        ended = self._ended.get(app_id)
        return not running or ended is None or time.monotonic() - ended > ENDING_GRACE

    async def AppFetchLogs(self, request: api.AppFetchLogsRequest) -> api.AppFetchLogsResponse:
        # The newest ones are what a limit keeps.
        entries = await self._store.read(_asked(request), request.limit, newest=True)
        return api.AppFetchLogsResponse(batches=[_batch(entry) for entry in entries])

    async def AppCountLogs(self, request: api.AppCountLogsRequest) -> api.AppCountLogsResponse:
        width = request.bucket_secs or 60
        start = _seconds(request.since)
        buckets = []
        for index, by_descriptor in (await self._store.count(_asked(request), start, width)).items():
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


def _followed(request: api.AppGetLogsRequest, after: int) -> Selection:
    return Selection(
        app_id=request.app_id,
        function_id=request.function_id,
        variant_id=_optional(request, "parametrized_function_id"),
        call_id=request.function_call_id,
        input_id=request.input_id,
        task_id=request.task_id,
        descriptor=request.file_descriptor,
        text=request.search_text,
        after=after,
    )


def _asked(request: api.AppFetchLogsRequest | api.AppCountLogsRequest) -> Selection:
    return Selection(
        app_id=request.app_id,
        function_id=request.function_id,
        variant_id=_optional(request, "parametrized_function_id"),
        call_id=request.function_call_id,
        task_id=request.task_id,
        descriptor=request.source,
        text=request.search_text,
        since=_seconds(request.since) if request.HasField("since") else None,
        until=_seconds(request.until) if request.HasField("until") else None,
    )


def _optional(
    request: api.AppGetLogsRequest | api.AppFetchLogsRequest | api.AppCountLogsRequest, name: str
) -> str:
    """A field that not every supported version of the SDK knows."""
    return str(getattr(request, name)) if name in request.DESCRIPTOR.fields_by_name else ""


def _seconds(moment: Timestamp) -> float:
    return moment.ToNanoseconds() / 1e9


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

"""Schedules: a firing is a function call without arguments. They run while their app runs and start anew at
each deployment.
"""

from __future__ import annotations

import asyncio
import logging

from modal_proto import api_pb2 as api

from local_modal import cron
from local_modal.model import App
from local_modal.rpc import RpcError, Service

log = logging.getLogger(__name__)

TABLE = "schedules"


class ScheduleService(Service):
    """Keeps the next firing of every scheduled function. One that is missed while the server is down is not
    made up.
    """

    async def start(self) -> None:
        self._changed = asyncio.Event()
        self._next: dict[str, float] = {}
        for function_id, at in self.server.store.load(TABLE).items():
            self._resume(function_id, float(at))
        self._loop = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        self._loop.cancel()

    def publish(self, app: App) -> None:
        """Begin (again) with the schedules of a newly published app."""
        self.cancel(app)
        now = self.server.clock.time()
        for function_id in app.function_ids.values():
            definition = self.server.functions.records[function_id].definition
            if definition is not None:
                self._set(function_id, cron.next_fire(definition.schedule, now), persist=app.deployed)

    def cancel(self, app: App) -> None:
        """No more firings for this app."""
        for function_id in list(self._next):
            if self.server.functions.app_of(function_id) in ("", app.app_id):
                self._set(function_id, None)

    def fire(self, function_id: str) -> str:
        """Call a scheduled function as its schedule does, now; returns the call's id.

        Raises:
            RpcError: there is no such function any more.
        """
        call = self.server.engine.ledger.open(
            function_id, api.FUNCTION_CALL_TYPE_UNARY, api.FUNCTION_CALL_INVOCATION_TYPE_ASYNC
        )
        self.server.engine.submit(call, [(0, api.FunctionInput(data_format=api.DATA_FORMAT_PICKLE))])
        return call.call_id

    def _set(self, function_id: str, moment: float | None, *, persist: bool = True) -> None:
        if moment is None:
            self._next.pop(function_id, None)
            self.server.store.delete(TABLE, function_id)
        else:
            self._next[function_id] = moment
            if persist:
                self.server.store.put(TABLE, function_id, repr(moment).encode())
        self._changed.set()

    def _resume(self, function_id: str, due: float) -> None:
        now = self.server.clock.time()
        try:
            resolved = self.server.functions.resolve(function_id)
        except RpcError as error:
            self._drop(function_id, error)
            return
        self._next[function_id] = due
        if due <= now:
            log.info("Schedule of %s: a firing was missed", resolved.record.name)
            self._set(function_id, cron.following(resolved.definition.schedule, due, now))

    def _drop(self, function_id: str, error: RpcError) -> None:
        log.warning("Schedule of %s dropped: %s", function_id, error.message)
        self._set(function_id, None)

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            now = self.server.clock.time()
            for function_id in [key for key, moment in self._next.items() if moment <= now]:
                self._fire_due(function_id, now)
            pause = min(self._next.values(), default=now + 3600.0) - self.server.clock.time()
            sleeper = asyncio.ensure_future(self.server.clock.sleep(min(max(pause, 0.0), 3600.0)))
            waiter = asyncio.ensure_future(self._changed.wait())
            try:
                await asyncio.wait((sleeper, waiter), return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeper.cancel()
                waiter.cancel()

    def _fire_due(self, function_id: str, now: float) -> None:
        try:
            resolved = self.server.functions.resolve(function_id)
            following = cron.following(resolved.definition.schedule, self._next[function_id], now)
            # Together: killed in between, the server would fire twice or forget to.
            with self.server.store.transaction():
                self.fire(function_id)
                self._set(function_id, following, persist=resolved.app.deployed)
        except RpcError as error:
            self._drop(function_id, error)

"""The control API of faults: set, list and clear them, carry out plans of them, and the actions that hit the
whole server or its objects rather than a container.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web
from modal_proto import api_pb2 as api

from local_modal.fault_journal import Plan, PlanEntry, parse
from local_modal.faults import FaultRefused, FaultSpec
from local_modal.rpc import RpcError, Service
from local_modal.services.control import Refused, refusal

if TYPE_CHECKING:
    from local_modal.server import Server

log = logging.getLogger(__name__)

PAUSE_MAX = 600.0
ANSWER_SECONDS = 0.05
"""The answer to `pause` leaves before the world stops."""


class FaultControlService(Service):
    """GET and POST /control/faults, POST /control/replay, and the actions clear, expire and pause."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._plans: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self.server.faults.restart(self.server.seed)
        http, control = self.server.http, self.server.control
        http.add_guarded_route("GET", "/control/faults", self._list)
        http.add_guarded_route("POST", "/control/faults", self._add)
        http.add_guarded_route("POST", "/control/replay", self._replay)
        control.add_action("clear", self._clear)
        control.add_action("expire", self._expire)
        control.add_action("pause", self._pause)
        if self.server.options.plan is not None:
            self._carry_out(self.server.options.plan)

    async def stop(self) -> None:
        for plan in self._plans:
            plan.cancel()
        self.server.faults.release()

    async def _list(self, request: web.Request) -> web.Response:
        faults = [fault.to_json() for fault in self.server.faults.known()]
        return web.json_response({"seed": self.server.faults.seed, "faults": faults})

    async def _add(self, request: web.Request) -> web.Response:
        try:
            spec = FaultSpec.of(await request.json())
        except (FaultRefused, ValueError, TypeError, AttributeError) as error:
            return refusal(str(error))
        return web.json_response(self.server.faults.add(spec).to_json())

    async def _replay(self, request: web.Request) -> web.Response:
        try:
            plan = parse(await request.json())
        except FaultRefused as error:
            return refusal(str(error))
        # The ids of faults are part of their luck: a repetition has to begin where its model began.
        for former in self._plans:
            former.cancel()
        self.server.faults.restart(self.server.faults.seed if plan.seed is None else plan.seed)
        self._carry_out(plan)
        return web.json_response({"entries": len(plan.entries), "seed": self.server.faults.seed})

    def _carry_out(self, plan: Plan) -> None:
        """Set at once what is due at once, so that not even the first request slips through."""
        later = [entry for entry in plan.entries if entry.at or entry.spec is None]
        for entry in plan.entries:
            if entry.spec is not None and not entry.at:
                self.server.faults.add(entry.spec)
        if later:
            task = asyncio.ensure_future(self._in_time(later, time.monotonic()))
            self._plans.add(task)
            task.add_done_callback(self._plans.discard)

    async def _in_time(self, entries: list[PlanEntry], began: float) -> None:
        for entry in entries:
            await asyncio.sleep(max(0.0, began + entry.at - time.monotonic()))
            if entry.spec is not None:
                self.server.faults.add(entry.spec)
                continue
            try:
                await self.server.control.run(entry.action, entry.fields)
            except Refused as error:
                log.warning("Plan: %s at %g s was impossible: %s", entry.action, entry.at, error)

    # -- actions

    async def _clear(self, body: dict[str, Any]) -> dict[str, Any]:
        """{"id"}: one; without: all."""
        if "id" not in body:
            return {"cleared": [fault.fault_id for fault in self.server.faults.clear_all()]}
        try:
            return {"cleared": [self.server.faults.clear(str(body["id"])).fault_id]}
        except FaultRefused as error:
            raise Refused(str(error)) from None

    async def _expire(self, body: dict[str, Any]) -> dict[str, Any]:
        """{"dict", "environment", "keys"}: those entries, or all, are gone as if their time were over."""
        dicts = self.server.dicts
        try:
            record = dicts.objects.find(str(body.get("dict", "")), str(body.get("environment", "")))
        except RpcError as error:
            raise Refused(error.message) from None
        if record is None:
            raise Refused(f"dict: there is no Dict {body.get('dict')!r}")
        dict_id = record.object_id
        if not isinstance(keys := body.get("keys"), list):
            before = await dicts.DictLen(api.DictLenRequest(dict_id=dict_id))
            await dicts.DictClear(api.DictClearRequest(dict_id=dict_id))
            return {"expired": before.len}
        # Here, because importing the SDK takes longer than the rest of a server's start.
        from modal._serialization import serialize

        expired = 0
        for key in keys:
            popped = await dicts.DictPop(api.DictPopRequest(dict_id=dict_id, key=serialize(key)))
            expired += popped.found
        return {"expired": expired}

    async def _pause(self, body: dict[str, Any]) -> dict[str, Any]:
        """{"seconds", "containers"}: the server answers nothing for so long; with `containers` all their
        processes stand still as well.
        """
        seconds = body.get("seconds")
        if not isinstance(seconds, (int, float)) or not 0 < seconds <= PAUSE_MAX:
            raise Refused(f"seconds: {seconds!r} is not above 0 and at most {PAUSE_MAX:g}")
        stop = self._freezer() if body.get("containers") else None
        asyncio.get_running_loop().call_later(ANSWER_SECONDS, _stand_still, float(seconds), stop)
        return {"paused": seconds}

    def _freezer(self) -> Callable[[int], None]:
        pids = [pid for task_id in self.server.engine.tasks for pid in self.server.workers.pids(task_id)]

        def send(signum: int) -> None:
            for pid in pids:
                try:
                    os.kill(pid, signum)
                except ProcessLookupError:
                    continue  # it has ended meanwhile

        return send


def _stand_still(seconds: float, to_containers: Callable[[int], None] | None) -> None:
    # Blocking the event loop is the point: connections stay open, nothing is answered, no deadline is looked
    # at before it is over.
    log.info("The world stops for %g s", seconds)
    if to_containers is not None:
        to_containers(signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        if to_containers is not None:
            to_containers(signal.SIGCONT)
    log.info("The world goes on")

"""The state of the whole server in one answer, for `top` and `status`."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from aiohttp import web
from modal_proto import api_pb2 as api

from local_modal.limits import resident
from local_modal.rpc import RpcError, Service

if TYPE_CHECKING:
    from local_modal.server import Server

LINES_KEPT = 200


class _RecentLines(logging.Handler):
    """The last lines of the server's own log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[dict[str, Any]] = deque(maxlen=LINES_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append({"time": record.created, "level": record.levelname, "message": record.getMessage()})


class StatusService(Service):
    """GET /control/status: {"server", "apps", "functions", "containers", "rpcs", "faults", "log"}. Counters
    run since the server's start.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._recent = _RecentLines()
        self._began = time.monotonic()

    async def start(self) -> None:
        self.server.http.add_guarded_route("GET", "/control/status", self._status)
        logging.getLogger("local_modal").addHandler(self._recent)

    async def stop(self) -> None:
        logging.getLogger("local_modal").removeHandler(self._recent)

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "server": self._server(),
                "apps": self._apps(),
                "functions": self._functions(),
                "containers": self._containers(),
                "rpcs": {
                    name: {"calls": count.calls, "errors": count.errors, "seconds": round(count.seconds, 6)}
                    for name, count in self.server.stats.rpcs.items()
                    if count.calls
                },
                "faults": [fault.to_json() for fault in self.server.faults.known()],
                "log": list(self._recent.lines),
            }
        )

    def _server(self) -> dict[str, Any]:
        return {
            "server_url": self.server.url,
            "http_url": self.server.http.address,
            "pid": os.getpid(),
            "mode": self.server.workers.isolation.mode,
            "state_dir": str(self.server.state_dir),
            "seed": self.server.faults.seed,
            "uptime": round(time.monotonic() - self._began, 3),
            "memory": resident(os.getpid()),
            "max_containers": self.server.options.max_containers,
        }

    def _apps(self) -> list[dict[str, Any]]:
        return [
            {
                "app_id": app.app_id,
                "name": app.name or app.description,
                "environment": app.environment,
                "state": api.AppState.Name(app.state).removeprefix("APP_STATE_").lower(),
                "functions": len(app.function_ids),
            }
            for app in self.server.apps.apps.values()
            if app.running
        ]

    def _functions(self) -> list[dict[str, Any]]:
        """Those that have something to tell: containers, inputs, or a past."""
        scheduler = self.server.engine.scheduler
        function_ids = dict.fromkeys(
            [*(key.function_id for key in scheduler.pools), *self.server.stats.functions]
        )
        rows = []
        for function_id in function_ids:
            try:
                resolved = self.server.functions.resolve(function_id)
            except RpcError:
                continue  # its app has ended
            pools = [pool for key, pool in scheduler.pools.items() if key.function_id == function_id]
            slots = [slot for pool in pools for slot in pool.slots.values()]
            count = self.server.stats.functions[function_id]
            rows.append(
                {
                    "app_name": resolved.app.name or resolved.app.description,
                    "function_name": resolved.record.name,
                    "function_id": function_id,
                    "containers": len(slots),
                    "starting": sum(slot.ready_at is None for slot in slots),
                    "queued": sum(len(pool.waiting()) for pool in pools),
                    "running": sum(len(slot.running) for slot in slots),
                    "cold_starts": count.cold_starts,
                    "succeeded": count.succeeded,
                    "failed": count.failed,
                    "cancelled": count.cancelled,
                }
            )
        return rows

    def _containers(self) -> list[dict[str, Any]]:
        now = self.server.clock.time()
        rows = []
        for task in self.server.engine.tasks.values():
            row = self.server.control.describe(task)
            row["age"] = round(now - (task.started_at or task.enqueued_at), 3)
            row["memory"] = sum(map(resident, self.server.workers.pids(task.task_id)))
            row["state"] = (
                "retiring" if row["retiring"]
                else "starting" if not row["ready"]
                else "busy" if row["running_inputs"]
                else "idle"
            )  # fmt: skip
            rows.append(row)
        return rows

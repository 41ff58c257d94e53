"""The control API over HTTP: look at containers, and do to them what Modal's cloud does now and then."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from local_modal.model import Task
from local_modal.rpc import RpcError, Service

if TYPE_CHECKING:
    from local_modal.server import Server

Action = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
NOTHING_MATCHES = "no live container matches; see /control/tasks"


class Refused(Exception):
    """What was asked for is impossible; the message says why."""


class ControlService(Service):
    """GET /control/tasks and a POST route for every action (`run`); JSON in and out, errors as
    {"error": sentence}. Only with the server's token.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._actions: dict[str, Action] = {}

    async def start(self) -> None:
        self.server.http.add_guarded_route("GET", "/control/tasks", self._tasks)
        self.add_action("kill", self._kill)
        self.add_action("preempt", self._preempt)
        self.add_action("redeliver", self._redeliver)
        self.add_action("fire", self._fire)
        self.add_action("advance", self._advance)

    def add_action(self, name: str, action: Action) -> None:
        """Serve POST /control/<name>; only before the start of the HTTP side."""
        self._actions[name] = action

        async def serve(request: web.Request) -> web.Response:
            body = await request.json() if request.can_read_body else {}
            if not isinstance(body, dict):
                return refusal("a JSON object is expected")
            try:
                return web.json_response(await self.run(name, body))
            except Refused as error:
                return refusal(str(error))

        self.server.http.add_guarded_route("POST", f"/control/{name}", serve)

    async def run(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Carry out an action and write it into the journal.

        Raises:
            Refused: it can't be done.
        """
        lasting = self._lasting(body)
        reply = await self._actions[name](body)
        if name != "clear":  # the faults write that down themselves
            self.server.journal.write({"event": "action", "action": name, "fields": lasting})
        return reply

    def _lasting(self, body: dict[str, Any]) -> dict[str, Any]:
        """The same order in words that mean something in a later run, where ids are others."""
        task = self.server.engine.tasks.get(str(body.get("task_id", "")))
        if task is None:
            return body
        rest = {name: value for name, value in body.items() if name != "task_id"}
        return {
            "function_name": task.function_name,
            "app_name": self.app_name(task),
            "count": 1,
            **rest,
        }

    async def _tasks(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"tasks": [self.describe(task) for task in self.server.engine.tasks.values()]}
        )

    def describe(self, task: Task) -> dict[str, Any]:
        """A container as /control/tasks shows it."""
        slot = self.server.engine.scheduler.slots.get(task.task_id)
        inputs = self.server.engine.ledger.inputs
        running = [inputs[input_id] for input_id in (slot.running if slot else ()) if input_id in inputs]
        return {
            "task_id": task.task_id,
            "app_id": task.app_id,
            "app_name": self.app_name(task),
            "function_id": task.function_id,
            "function_name": task.function_name,
            "environment": task.environment,
            "pid": self.server.workers.entry_pid(task.task_id),
            "started_at": task.started_at,
            "ready": slot is not None and slot.ready_at is not None,
            "retiring": slot is not None and slot.retiring,
            "inputs_taken": slot.taken if slot else 0,
            "wants": self._wants(task),
            "running_inputs": [
                {"input_id": item.input_id, "function_call_id": item.call.call_id} for item in running
            ],
        }

    def _wants(self, task: Task) -> dict[str, Any]:
        """Which machine the container asked for; of this only the limits mean anything here."""
        try:
            definition = self.server.functions.resolve(task.function_id).definition
        except RpcError:  # its app was stopped meanwhile
            return {}
        resources = definition.resources
        gpu = resources.gpu_config
        return {
            "cpu": [resources.milli_cpu / 1000, resources.milli_cpu_max / 1000],
            "memory": [resources.memory_mb, resources.memory_mb_max],
            "gpu": f"{gpu.gpu_type}:{gpu.count}" if gpu.gpu_type else "",
            "regions": list(definition.scheduler_placement.regions),
            "cloud": definition.cloud_provider_str,
            "timeout": definition.timeout_secs,
        }

    def app_name(self, task: Task) -> str:
        """The name of the app that a container belongs to, or the description of one without."""
        app = self.server.apps.apps.get(task.app_id)
        return (app.name or app.description) if app else ""

    async def _kill(self, body: dict[str, Any]) -> dict[str, Any]:
        name = str(body.get("signal", "SIGKILL"))
        try:
            signum = signal.Signals(int(name)) if name.isdigit() else signal.Signals[name]
        except (KeyError, ValueError):
            raise Refused(f"signal: {name!r} is not a signal") from None
        chosen = self._chosen(body)
        for task in chosen:
            self.server.workers.signal(task.task_id, signum)
        return {"killed": [task.task_id for task in chosen]}

    async def _preempt(self, body: dict[str, Any]) -> dict[str, Any]:
        return {
            "preempted": {
                task.task_id: self.server.engine.preempt(task.task_id) for task in self._chosen(body)
            }
        }

    async def _redeliver(self, body: dict[str, Any]) -> dict[str, Any]:
        engine = self.server.engine
        input_id = str(body.get("input_id", ""))
        if not input_id:
            running = [i for task in self._chosen(body) for i in engine.scheduler.slots[task.task_id].running]
            if not running:
                raise Refused("no input runs there; see /control/tasks")
            input_id = running[0]
        try:
            task_id = self.server.desk.redeliver(input_id)
        except RpcError as error:
            raise Refused(error.message) from None
        return {"input_id": input_id, "task_id": task_id}

    async def _fire(self, body: dict[str, Any]) -> dict[str, Any]:
        app = self.server.apps.deployed(body.get("app_name", ""), body.get("environment", ""))
        function_id = app.function_ids.get(body.get("function_name", "")) if app else None
        if function_id is None:
            raise Refused("app_name, function_name: no such deployed function")
        return {"function_call_id": self.server.schedules.fire(function_id)}

    async def _advance(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            self.server.advance(float(body.get("seconds", "")))
        except ValueError as error:
            raise Refused(f"seconds: {error}") from None
        return {"time": self.server.clock.time()}

    def _chosen(self, body: dict[str, Any]) -> list[Task]:
        """By task_id, or by function_name and optionally app_name and count (the oldest ones).

        Raises:
            Refused: there is none.
        """
        tasks = list(self.server.engine.tasks.values())
        if body.get("task_id"):
            chosen = [task for task in tasks if task.task_id == body["task_id"]]
        else:
            chosen = [task for task in tasks if task.function_name == body.get("function_name")]
        if body.get("app_name"):
            chosen = [task for task in chosen if self.app_name(task) == body["app_name"]]
        count = body.get("count") or len(chosen)
        if not chosen:
            raise Refused(NOTHING_MATCHES)
        return chosen[: int(count)]


def refusal(sentence: str) -> web.Response:
    """An answer that says why not."""
    return web.json_response({"error": sentence}, status=404)

"""The control API over HTTP: look at containers and make them fail, for tests."""

from __future__ import annotations

import signal
from typing import Any

from aiohttp import web

from local_modal.model import Task
from local_modal.rpc import RpcError, Service


class ControlService(Service):
    """GET /control/tasks, POST /control/kill, /preempt, /redeliver, /fire and /advance; JSON in and out,
    errors as {"error": sentence}. Only with the server's token.
    """

    async def start(self) -> None:
        http = self.server.http
        http.add_guarded_route("GET", "/control/tasks", self._tasks)
        http.add_guarded_route("POST", "/control/kill", self._kill)
        http.add_guarded_route("POST", "/control/preempt", self._preempt)
        http.add_guarded_route("POST", "/control/redeliver", self._redeliver)
        http.add_guarded_route("POST", "/control/fire", self._fire)
        http.add_guarded_route("POST", "/control/advance", self._advance)

    async def _tasks(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"tasks": [self._describe(task) for task in self.server.engine.tasks.values()]}
        )

    def _describe(self, task: Task) -> dict[str, Any]:
        slot = self.server.engine.scheduler.slots.get(task.task_id)
        app = self.server.apps.apps.get(task.app_id)
        inputs = (
            [
                self.server.engine.ledger.inputs[i]
                for i in slot.running
                if i in self.server.engine.ledger.inputs
            ]
            if slot
            else []
        )
        return {
            "task_id": task.task_id,
            "app_id": task.app_id,
            "app_name": (app.name or app.description) if app else "",
            "function_id": task.function_id,
            "function_name": task.function_name,
            "environment": task.environment,
            "pid": self.server.workers.entry_pid(task.task_id),
            "started_at": task.started_at,
            "ready": slot is not None and slot.ready_at is not None,
            "retiring": slot is not None and slot.retiring,
            "inputs_taken": slot.taken if slot else 0,
            "running_inputs": [
                {"input_id": item.input_id, "function_call_id": item.call.call_id} for item in inputs
            ],
        }

    async def _kill(self, request: web.Request) -> web.Response:
        body = await _body(request)
        name = str(body.get("signal", "SIGKILL"))
        try:
            signum = signal.Signals(int(name)) if name.isdigit() else signal.Signals[name]
        except (KeyError, ValueError):
            return _refusal(f"signal: {name!r} is not a signal")
        chosen = self._chosen(body)
        if not chosen:
            return _refusal("no live container matches; see /control/tasks")
        for task in chosen:
            self.server.workers.signal(task.task_id, signum)
        return web.json_response({"killed": [task.task_id for task in chosen]})

    async def _preempt(self, request: web.Request) -> web.Response:
        chosen = self._chosen(await _body(request))
        if not chosen:
            return _refusal("no live container matches; see /control/tasks")
        moved = {task.task_id: self.server.engine.preempt(task.task_id) for task in chosen}
        return web.json_response({"preempted": moved})

    async def _redeliver(self, request: web.Request) -> web.Response:
        body = await _body(request)
        engine = self.server.engine
        input_id = body.get("input_id", "")
        if not input_id:
            running = [i for task in self._chosen(body) for i in engine.scheduler.slots[task.task_id].running]
            if not running:
                return _refusal("no input runs there; see /control/tasks")
            input_id = running[0]
        try:
            task_id = self.server.desk.redeliver(input_id)
        except RpcError as error:
            return _refusal(error.message)
        return web.json_response({"input_id": input_id, "task_id": task_id})

    async def _fire(self, request: web.Request) -> web.Response:
        body = await _body(request)
        app = self.server.apps.deployed(body.get("app_name", ""), body.get("environment", ""))
        function_id = app.function_ids.get(body.get("function_name", "")) if app else None
        if function_id is None:
            return _refusal("app_name, function_name: no such deployed function")
        return web.json_response({"function_call_id": self.server.schedules.fire(function_id)})

    async def _advance(self, request: web.Request) -> web.Response:
        body = await _body(request)
        try:
            self.server.advance(float(body.get("seconds", "")))
        except ValueError as error:
            return _refusal(f"seconds: {error}")
        return web.json_response({"time": self.server.clock.time()})

    def _chosen(self, body: dict[str, Any]) -> list[Task]:
        """By task_id, or by function_name and optionally app_name."""
        tasks = list(self.server.engine.tasks.values())
        if body.get("task_id"):
            return [task for task in tasks if task.task_id == body["task_id"]]
        if not body.get("function_name"):
            return []
        chosen = [task for task in tasks if task.function_name == body["function_name"]]
        if body.get("app_name"):
            chosen = [task for task in chosen if self._describe(task)["app_name"] == body["app_name"]]
        return chosen


async def _body(request: web.Request) -> dict[str, Any]:
    body = await request.json() if request.can_read_body else {}
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="a JSON object is expected")
    return body


def _refusal(sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=404)

"""What a request is about, in the words that faults are narrowed with: objects by name, functions, queue
lengths. Only asked while a fault is in force.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from local_modal.faults import CONTAINER_START, Visit
from local_modal.model import Task
from local_modal.rpc import Caller, RpcError

if TYPE_CHECKING:
    from local_modal.server import Server

_NAMES = ("deployment_name", "object_name", "app_name", "function_name", "name")
"""Fields of requests with which an object is looked up."""


class Targets:
    """Describes requests and starts of containers of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def rpc(self, name: str, request: Any, caller: Caller, repeatable: bool) -> Visit:
        """An RPC with its request message."""
        task_id = caller.task_id or ""
        return Visit(
            name,
            task_id,
            function=lambda: self._function_of(task_id),
            objects=lambda: self._objects(request),
            load=lambda: self._waiting(request),
            repeatable=repeatable,
        )

    def start(self, task: Task) -> Visit:
        """A container that is about to start."""
        return Visit(
            CONTAINER_START,
            task.task_id,
            function=lambda: task.function_name,
            objects=lambda: (task.function_name, task.function_id, task.app_id),
            load=self.running,
        )

    def running(self) -> int:
        """Containers that have a process."""
        return sum(1 for task_id in self._server.engine.tasks if self._server.workers.is_live(task_id))

    def _function_of(self, task_id: str) -> str:
        task = self._server.engine.tasks.get(task_id)
        return task.function_name if task else ""

    def _objects(self, request: Any) -> list[str]:
        found: list[str] = []
        for field, value in request.ListFields():
            if not isinstance(value, str):
                continue
            if field.name in _NAMES:
                found.append(value)
            elif field.name.endswith("_id"):
                found += [value, self._name_of(field.name, value)]
        return [name for name in found if name]

    def _name_of(self, field: str, object_id: str) -> str:
        server = self._server
        try:
            if field == "function_call_id":
                object_id = server.engine.ledger.get(object_id).function_id
                field = "function_id"
            if field == "function_id":
                return server.functions.resolve(object_id).record.name
            if field == "app_id":
                app = server.apps.apps.get(object_id)
                return (app.name or app.description) if app else ""
            kinds = {
                "queue_id": server.queues.objects,
                "dict_id": server.dicts.objects,
                "volume_id": server.volumes.objects,
                "secret_id": server.secrets.objects,
            }
            return kinds[field].get(object_id).name if field in kinds else ""
        except RpcError:  # the request will be told that it isn't there
            return ""

    def _waiting(self, request: Any) -> int:
        """Inputs in the queue of the function that the request is about."""
        function_id = getattr(request, "function_id", "")
        call = self._server.engine.ledger.calls.get(getattr(request, "function_call_id", ""))
        function_id = function_id or (call.function_id if call else "")
        return sum(
            len(pool.waiting())
            for key, pool in self._server.engine.scheduler.pools.items()
            if key.function_id == function_id
        )

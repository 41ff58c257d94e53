"""What containers ask and tell, and what clients may know about them. A container is known by its request's
task id header.
"""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal.rpc import RpcError, Service, container_caller


class ContainerService(Service):
    """Container*, FunctionGetInputs, FunctionPutOutputs, TaskResult, TaskList."""

    async def ContainerHello(self, request: Empty) -> Empty:
        return Empty()

    async def ContainerHeartbeat(
        self, request: api.ContainerHeartbeatRequest
    ) -> api.ContainerHeartbeatResponse:
        return await self.server.desk.heartbeat(container_caller())

    async def FunctionGetInputs(self, request: api.FunctionGetInputsRequest) -> api.FunctionGetInputsResponse:
        return await self.server.desk.next_inputs(container_caller(), request.input_concurrency)

    async def FunctionPutOutputs(self, request: api.FunctionPutOutputsRequest) -> Empty:
        task_id = container_caller()
        # What was printed before the result belongs to the input, which is about to end.
        self.server.workers.drain_output(task_id)
        with self.server.store.transaction():
            for output in request.outputs:
                self.server.engine.put_output(task_id, output)
        return Empty()

    async def TaskResult(self, request: api.TaskResultRequest) -> Empty:
        self.server.engine.start_failed(container_caller(), request.result)
        return Empty()

    async def FunctionGetDynamicConcurrency(
        self, request: api.FunctionGetDynamicConcurrencyRequest
    ) -> api.FunctionGetDynamicConcurrencyResponse:
        return api.FunctionGetDynamicConcurrencyResponse(concurrency=request.max_concurrency)

    async def TaskCurrentInputs(self, request: Empty) -> api.TaskCurrentInputsResponse:
        slot = self.server.engine.scheduler.slots.get(container_caller())
        return api.TaskCurrentInputsResponse(input_ids=list(slot.running) if slot else [])

    async def ContainerStop(self, request: api.ContainerStopRequest) -> api.ContainerStopResponse:
        if request.task_id in self.server.engine.tasks:
            if request.graceful:
                self.server.engine.scheduler.retire([request.task_id])
                self.server.engine.kick()
            else:
                self.server.engine.stop_container(request.task_id)
        return api.ContainerStopResponse()

    async def TaskList(self, request: api.TaskListRequest) -> api.TaskListResponse:
        environment = self.server.environments.resolve(request.environment_name)
        tasks = []
        for task in self.server.engine.tasks.values():
            if request.app_id and task.app_id != request.app_id:
                continue
            if not request.app_id and task.environment != environment:
                continue
            app = self.server.apps.apps.get(task.app_id)
            tasks.append(
                api.TaskStats(
                    task_id=task.task_id,
                    app_id=task.app_id,
                    app_description=(app.name or app.description) if app else "",
                    started_at=task.started_at,
                    enqueued_at=task.enqueued_at,
                )
            )
        return api.TaskListResponse(tasks=tasks)

    async def TaskGetInfo(self, request: api.TaskGetInfoRequest) -> api.TaskGetInfoResponse:
        task = self.server.engine.tasks.get(request.task_id)
        if task is None:
            # Of one that has ended, what it printed is still there, and tells when it lived.
            printed = await self.server.logs.first_and_last(request.task_id)
            if printed is None:
                raise RpcError(Status.NOT_FOUND, f"Container {request.task_id} not found.")
            first, last = printed
            info = api.TaskInfo(
                id=request.task_id,
                enqueued_at=first.time,
                started_at=first.time,
                finished_at=last.time + 0.001,  # a range's end is exclusive
            )
            return api.TaskGetInfoResponse(app_id=first.app_id, info=info)
        info = api.TaskInfo(id=task.task_id, started_at=task.started_at, enqueued_at=task.enqueued_at)
        return api.TaskGetInfoResponse(app_id=task.app_id, info=info)

"""Where containers ask: for inputs, and by their heartbeat whether something is to be cancelled. Answers are
held until there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal.calls import Input
from local_modal.rpc import RpcError

if TYPE_CHECKING:
    from local_modal.server import Server

INPUTS_HELD = 20.0
"""Seconds that a container's request for inputs is held when there are none."""
HEARTBEAT_HELD = 10.0
"""Seconds that a heartbeat is held; the SDK gives up after 15.1."""
CANCEL_REPEAT = 1.5
"""Seconds between two cancel events for one input: the SDK loses one that comes while the input is
starting.
"""


class Desk:
    """Hands out inputs, orders to exit and cancel events."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._engine = server.engine

    async def next_inputs(self, task_id: str, concurrency: int = 1) -> api.FunctionGetInputsResponse:
        """Answer a container's request for inputs, held until there are some or the order to exit.

        :param concurrency: how many inputs the container runs at the same time.
        """
        deadline = self._server.clock.time() + INPUTS_HELD
        while True:
            task = self._engine.tasks.get(task_id)
            if task is None:
                return api.FunctionGetInputsResponse(inputs=[api.FunctionGetInputsItem(kill_switch=True)])
            task.inputs_wake.clear()
            now = self._server.clock.time()
            task.redeliveries = [item for item in task.redeliveries if not item.done]
            if task.redeliveries and task_id in self._engine.scheduler.slots:
                again = task.redeliveries.pop(0)
                self._engine.scheduler.redeliver(task_id, again.input_id, now)
                again.running_on.add(task_id)
                task.attempts[again.input_id] = again.retry_count
                return api.FunctionGetInputsResponse(inputs=[self._item(again)])
            if unheard := self._unheard(task_id, concurrency):
                return api.FunctionGetInputsResponse(inputs=[self._item(item) for item in unheard])
            handout = self._engine.scheduler.claim(task_id, now)
            if handout.exit:
                return api.FunctionGetInputsResponse(inputs=[api.FunctionGetInputsItem(kill_switch=True)])
            self._engine.kick()
            if handout.input_ids:
                items = [self._engine.ledger.inputs[input_id] for input_id in handout.input_ids]
                for item in items:
                    item.queued = False
                    # From here on, what a preempted container still answers for it doesn't count.
                    item.running_on = {task_id}
                    task.attempts[item.input_id] = item.retry_count
                return api.FunctionGetInputsResponse(inputs=[self._item(item) for item in items])
            if not await self._engine.wait(task.inputs_wake, deadline - now):
                return api.FunctionGetInputsResponse()

    def _unheard(self, task_id: str, concurrency: int) -> list[Input]:
        """Return the inputs of an answer that the container never got: it asks although it has its fill.

        They are the same attempts, so nothing about them changes: as the SDK says of Modal, "an expired fetch
        lease redelivers" an input "under the same input id and retry count". That this needs no waiting is an
        assumption. A container that runs several inputs doesn't show which one it lacks, so it gets none.
        """
        slot = self._engine.scheduler.slots.get(task_id)
        if slot is None or slot.retiring or concurrency > 1:
            return []
        held = (self._engine.ledger.inputs.get(input_id) for input_id in slot.running)
        return [item for item in held if item is not None and not item.done and task_id in item.running_on]

    @staticmethod
    def _item(item: Input) -> api.FunctionGetInputsItem:
        return api.FunctionGetInputsItem(
            input_id=item.input_id,
            input=item.payload,
            function_call_id=item.call.call_id,
            function_call_invocation_type=item.call.invocation_type,  # type: ignore[arg-type]
            retry_count=item.retry_count,
            function_map_idx=item.index,
        )

    async def heartbeat(self, task_id: str) -> api.ContainerHeartbeatResponse:
        """Answer a container's heartbeat: at once when something is to be cancelled there."""
        deadline = self._server.clock.time() + HEARTBEAT_HELD
        while (task := self._engine.tasks.get(task_id)) is not None:
            task.heartbeat_wake.clear()
            now = self._server.clock.time()
            due = [input_id for input_id, sent in task.cancelling.items() if now - sent >= CANCEL_REPEAT]
            if due:
                task.cancelling.update(dict.fromkeys(due, now))
                return api.ContainerHeartbeatResponse(cancel_input_event=api.CancelInputEvent(input_ids=due))
            again = min((sent + CANCEL_REPEAT for sent in task.cancelling.values()), default=deadline)
            await self._engine.wait(task.heartbeat_wake, min(again, deadline) - now)
            if self._server.clock.time() >= deadline:
                break
        return api.ContainerHeartbeatResponse()

    def redeliver(self, input_id: str) -> str:
        """Hand a running input to a second container of its function while the first one still has it;
        returns its task id.

        Raises:
            RpcError: the input isn't running.
        """
        item = self._engine.ledger.inputs.get(input_id)
        if item is None or not item.running_on:
            raise RpcError(Status.NOT_FOUND, f"Input {input_id} is not running.")
        key = self._server.functions.ensure_pool(item.call.function_id)
        pool = self._engine.scheduler.pools[key]
        for slot in pool.live():
            if not slot.running:
                break
        else:
            self._engine.start_container(key)
            slot = list(pool.slots.values())[-1]
        task = self._engine.tasks[slot.task_id]
        task.redeliveries.append(item)
        task.inputs_wake.set()
        return task.task_id

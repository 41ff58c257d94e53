"""What becomes of an input when an attempt ends: a result, another attempt, or a place in the queue again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from modal_proto import api_pb2 as api

from local_modal.calls import Call, Input
from local_modal.model import Task
from local_modal.rpc import RpcError
from local_modal.scheduler import PoolKey, restart_delay

if TYPE_CHECKING:
    from local_modal.engine import Engine

log = logging.getLogger(__name__)

LOSSES_TOLERATED = 3
"""Containers that may die under an input of an ephemeral app; for a deployed app it starts again for ever
(https://modal.com/docs/guide/retries). Modal gives no figure for its failure rate.
"""


class Outcomes:
    """Ends inputs, or queues them again."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._server = engine.server

    # -- another attempt

    def queue(self, item: Input, delay: float = 0.0) -> None:
        """Queue an input that had its turn again, to start before new ones once `delay` seconds have passed.

        It goes to its function's present pool; if a redeploy has removed the function, it is terminated.
        """
        try:
            key = self._server.functions.ensure_pool(item.call.function_id)
        except RpcError as error:
            self.terminate(item, error.message)
            return
        item.queued = True
        self._engine.scheduler.resubmit(key, item.input_id, self._server.clock.time(), delay)
        self._engine.kick()

    def retry(self, item: Input, now: float) -> bool:
        """Queue a failed attempt again if the function's policy allows; False if it doesn't."""
        try:
            policy = self._server.functions.resolve(item.call.function_id).definition.retry_policy
        except RpcError:  # its app has been stopped meanwhile
            return False
        if item.retry_count >= policy.retries:
            return False
        delay = policy.initial_delay_ms / 1000 * (policy.backoff_coefficient or 1.0) ** item.retry_count
        item.retry_count += 1
        self._engine.ledger.keep(item)
        self.queue(item, min(delay, policy.max_delay_ms / 1000 or delay))
        return True

    def lost(self, task: Task, item: Input, how: str) -> None:
        """The container died (`how` says of what) under the input's current attempt."""
        app = self._server.apps.apps.get(item.call.app_id)
        if item.cancel_requested or app is None or not app.running:
            self.terminate(item, "The input was cancelled and its container has ended")
            return
        if item.call.answering == task.task_id:
            text = f"The container {task.task_id} ended within its response: {how}"
            self.fail(item, api.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE, text, task.task_id)
            return
        item.losses += 1
        if not app.deployed and item.losses > LOSSES_TOLERATED:
            text = f"The container {task.task_id} ended while it ran this input: {how}"
            self.fail(item, api.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE, text, task.task_id)
            self.fail_waiting(PoolKey(task.function_id, app.generation), task, how)
            return
        delay = restart_delay(item.losses)
        self._engine.announce(task, f"ended: {how}; its input starts again in {delay:g} s", item)
        self.queue(item, delay)

    def answers(self, call: Call, task_id: str) -> bool:
        """Whether the client of a web request gets what this container now sends. The first one that sends
        something answers; from then on the request can't start again elsewhere.
        """
        [item] = call.inputs
        if task_id not in item.running_on or call.answering not in ("", task_id):
            return False
        if not call.answering:
            call.answering = task_id
            self.withdraw(item)
        return True

    # -- the end

    def finish(
        self, item: Input, result: api.GenericResult, data_format: int, task_id: str, started_at: float
    ) -> None:
        """Give an input its result, unless it has one."""
        if item.done:
            return
        self.withdraw(item)
        output = api.FunctionGetOutputsItem(
            result=result,
            idx=item.index,
            input_id=item.input_id,
            data_format=data_format,  # type: ignore[arg-type]
            task_id=task_id,
            input_started_at=started_at,
            output_created_at=self._server.clock.time(),
            retry_count=item.retry_count,
        )
        self._engine.ledger.finish(item, output)

    def withdraw(self, item: Input) -> None:
        """Take an input out of the queue, if it is there."""
        if item.queued:
            item.queued = False
            self._engine.scheduler.withdraw(item.input_id)

    def terminate(self, item: Input, reason: str) -> None:
        """End an input as cancelled."""
        self.fail(item, api.GenericResult.GENERIC_STATUS_TERMINATED, reason)

    def fail(self, item: Input, status: int, reason: str, task_id: str = "") -> None:
        """End an input with a status and a sentence."""
        result = api.GenericResult(status=status, exception=reason)  # type: ignore[arg-type]
        self.finish(item, result, api.DATA_FORMAT_UNSPECIFIED, task_id, 0.0)

    def fail_waiting(self, key: PoolKey, task: Task, how: str) -> None:
        """Containers of this pool keep dying: everything that waits there gets the reason."""
        words = "".join(task.last_words).strip()
        result = task.result or api.GenericResult(
            status=api.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE,
            exception=f"Containers of {task.function_name} keep ending: {how}"
            + (f": {words}" if words else ""),
        )
        pool = self._engine.scheduler.pools.get(key)
        for input_id in pool.waiting() if pool else []:
            item = self._engine.ledger.inputs[input_id]
            self.finish(item, result, api.DATA_FORMAT_UNSPECIFIED, task.task_id, 0.0)

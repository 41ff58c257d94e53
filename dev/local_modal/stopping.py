"""How containers are brought to their end: step by step, so that user code can clean up, and certainly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modal_proto import api_pb2 as api

from local_modal.model import Task

if TYPE_CHECKING:
    from local_modal.engine import Engine


class Stopper:
    """The kill ladder (cancel event, SIGINT, SIGKILL of everything inside), and who is put on it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._server = engine.server

    def stop(self, task_id: str, reason: str, *, at_once: bool = False) -> None:
        """No more inputs for this container; after `cancel_grace` seconds (or `at_once`) SIGINT, so that exit
        handlers and the final commit run, and after `stop_grace` more SIGKILL.
        """
        task = self._engine.tasks.get(task_id)
        if task is None:
            return
        self._engine.scheduler.retire([task_id])
        task.inputs_wake.set()
        if not task.stop_reason:
            task.stop_reason = reason
            options = self._server.options
            self._climb(task, 0.0 if at_once else options.cancel_grace, options.stop_grace)

    def preempt(self, task: Task) -> list[str]:
        """Take a container away as Modal does when it needs the machine: SIGINT, then SIGKILL after
        `preemption_grace` seconds. Its inputs are queued again at once, without costing a retry; until one of
        them has begun elsewhere, a result from here still counts. Returns their ids.

        Modal's own guide promises "restart on the same input" and a grace period of 30 s
        (https://modal.com/docs/guide/preemption, .../lifecycle-functions). That the other attempt doesn't
        wait for the end of this one, not even under `max_containers`, is an assumption: the worse case.
        """
        engine = self._engine
        engine.scheduler.preempt(task.task_id)
        task.inputs_wake.set()
        moved = []
        for input_id in engine.scheduler.slots[task.task_id].running:
            item = engine.ledger.inputs.get(input_id)
            if item is None or item.done or item.queued or item.cancel_requested:
                continue
            # A response that has begun can't begin again: it may end within the grace period.
            if item.running_on == {task.task_id} and not item.call.answering:
                engine.outcomes.queue(item)
                moved.append(input_id)
        again = "; what it runs starts again in another container" if moved else ""
        engine.announce(task, f"is preempted{again}")
        if not task.stop_reason:
            task.stop_reason = "it was preempted"
            self._climb(task, 0.0, self._server.options.preemption_grace)
        engine.kick()
        return moved

    def startup_timed_out(self, task: Task, seconds: float) -> None:
        """A container wasn't ready in time; what it says to those who wait is the timeout."""
        if task.stop_reason:
            return  # it is on its way out
        task.stop_reason = f"its startup took longer than {seconds:g} s"
        text = f"Container startup of {task.function_name} took longer than {seconds:g} s"
        task.result = api.GenericResult(status=api.GenericResult.GENERIC_STATUS_TIMEOUT, exception=text)
        self._server.workers.kill(task.task_id)

    def input_timed_out(self, task: Task, input_id: str, seconds: float) -> None:
        """End an attempt that took longer than `seconds`, and its container with it."""
        engine = self._engine
        now = self._server.clock.time()
        # None: cancelled, its call has expired meanwhile, but user code goes on.
        item = engine.ledger.inputs.get(input_id)
        engine.scheduler.finished(task.task_id, input_id, now)
        task.cancelling[input_id] = 0.0
        task.heartbeat_wake.set()
        self.stop(task.task_id, "an input timed out")
        if item is None:
            return
        current = task.task_id in item.running_on
        item.running_on.discard(task.task_id)
        if item.done or not current:
            return
        if item.cancel_requested or not engine.outcomes.retry(item, now):
            text = f"Input timed out after {seconds:g} s"
            engine.outcomes.fail(item, api.GenericResult.GENERIC_STATUS_TIMEOUT, text, task.task_id)

    def _climb(self, task: Task, before_interrupt: float, before_kill: float) -> None:
        self._engine.spawn_background(self._ladder(task, before_interrupt, before_kill))

    async def _ladder(self, task: Task, before_interrupt: float, before_kill: float) -> None:
        if await self._engine.wait(task.exited, before_interrupt):
            return
        self._server.workers.interrupt(task.task_id)
        if await self._engine.wait(task.exited, before_kill):
            return
        self._server.workers.kill(task.task_id)

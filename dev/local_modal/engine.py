"""What happens to inputs: from their arrival through containers that run, fail or die to their results.

The engine holds every call, input and container in memory and carries out what the scheduler plans. RPC
handlers and the workers call in; all of it runs on the server's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal import ids
from local_modal.calls import Call, Input
from local_modal.ledger import Ledger
from local_modal.model import App, Task
from local_modal.outcomes import Outcomes
from local_modal.rpc import RpcError
from local_modal.scheduler import START_FAILURES_TOLERATED, Pool, PoolKey, PoolSettings, Scheduler
from local_modal.stopping import Stopper

if TYPE_CHECKING:
    from local_modal.server import Server

log = logging.getLogger(__name__)

CRASHES_BEFORE_READY_TOLERATED = 5
"""Containers of an ephemeral app that may die before their first request without having said why."""
SERVER_STOP_GRACE = 3.0
"""Seconds that containers have for their exit handlers and final commits when the server stops."""


class Engine:
    """Calls, inputs and containers, and the loop that moves them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.scheduler = Scheduler(server.options.max_containers, server.options.cancel_limit)
        self.ledger = Ledger(server)
        self.outcomes = Outcomes(self)
        self.stopper = Stopper(self)
        self.tasks: dict[str, Task] = {}
        self._kicked = asyncio.Event()
        self._background: set[asyncio.Task[Any]] = set()
        self._starved_reported = False

    # -- the loop

    async def start(self) -> None:
        """Queue what a former server left unfinished, and begin to plan."""
        for item in self.ledger.load():
            if item.cancel_requested:
                self.outcomes.terminate(item, "The call was cancelled while the server was restarting")
            else:
                self.outcomes.queue(item)
        self._planning = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """End all containers, gracefully for a moment, and stop planning."""
        self._planning.cancel()
        tasks = list(self.tasks.values())
        for task in tasks:
            task.stop_reason = task.stop_reason or "the server is stopping"
            self.server.workers.interrupt(task.task_id)
        exits = [asyncio.ensure_future(task.exited.wait()) for task in tasks]
        if exits:
            await asyncio.wait(exits, timeout=SERVER_STOP_GRACE)
        for task in tasks:
            self.server.workers.kill(task.task_id)
        await self.server.workers.wait_all()
        for background in list(self._background):
            background.cancel()

    def kick(self) -> None:
        """Plan again soon; many kicks in one turn of the loop are one."""
        self._kicked.set()

    def spawn_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run `coroutine` for as long as the server lives; its failure is logged."""
        task = asyncio.ensure_future(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("A background task of the engine failed", exc_info=task.exception())

    async def _run(self) -> None:
        while True:
            try:
                await self._step()
            except Exception:
                # A bug in one step must not stop everything else for ever.
                log.exception("The engine's loop failed; going on")
                await self.server.clock.sleep(1.0)

    async def _step(self) -> None:
        """Carry out one plan, then wait for its next moment or a kick."""
        self._kicked.clear()
        now = self.server.clock.time()
        plan = self.scheduler.plan(now)
        for key in plan.starts:
            self.start_container(key)
        for task_id in plan.startup_timeouts:
            self.stopper.startup_timed_out(self.tasks[task_id], self._settings(task_id).startup_timeout)
        for task_id, input_id in plan.input_timeouts:
            self.stopper.input_timed_out(self.tasks[task_id], input_id, self._settings(task_id).timeout)
        for task_id in plan.ignored_cancels:
            self.stopper.stop(task_id, "user code ignored a cancel", at_once=True)
        for task_id in plan.wake:
            self.tasks[task_id].inputs_wake.set()
        if plan.starved and not self._starved_reported:
            log.warning(
                "Inputs wait because all %d containers are busy; raise --max-containers if the "
                "functions wait for each other",
                self.scheduler.max_containers,
            )
        self._starved_reported = plan.starved
        if plan.starts:
            self.kick()  # the new containers have deadlines that this plan doesn't know
        await self.wait(self._kicked, plan.wake_at - now)

    async def wait(self, event: asyncio.Event, seconds: float) -> bool:
        """Whether `event` is set within `seconds` of the server's clock."""
        if event.is_set():
            return True
        if seconds <= 0:
            return False
        waiter = asyncio.ensure_future(event.wait())
        sleeper = asyncio.ensure_future(self.server.clock.sleep(min(seconds, 3600.0)))
        try:
            await asyncio.wait((waiter, sleeper), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
            sleeper.cancel()
        return event.is_set()

    # -- calls

    def admit(self, function_id: str, count: int, *, spawned: bool) -> None:
        """Check that a function may get `count` more inputs.

        Raises:
            RpcError: RESOURCE_EXHAUSTED, it has too many already; NOT_FOUND, it is gone.
        """
        quotas = self.server.quotas
        pool = self.scheduler.pools[self.server.functions.ensure_pool(function_id)]
        pending = len(pool.queue)
        most = quotas.pending_spawned if spawned else quotas.pending_inputs
        if pending + count > most:
            raise RpcError(
                Status.RESOURCE_EXHAUSTED,
                f"The function has {pending} pending inputs; {count} more would exceed the limit of {most}. "
                "Try again later.",
            )
        total = pending + sum(len(slot.running) for slot in pool.slots.values())
        if not spawned and total + count > quotas.total_inputs:
            raise RpcError(
                Status.RESOURCE_EXHAUSTED,
                f"The function has {total} pending and running inputs; {count} more would exceed the limit "
                f"of {quotas.total_inputs}. Try again later.",
            )

    def submit(self, call: Call, inputs: Iterable[tuple[int, api.FunctionInput]]) -> list[Input]:
        """Queue new inputs of `call`, given with their indexes.

        Raises:
            RpcError: the function is gone.
        """
        key = self.server.functions.ensure_pool(call.function_id)
        now = self.server.clock.time()
        with self.server.store.transaction():
            added = [self.ledger.add(call, index, payload) for index, payload in inputs]
        for item in added:
            item.queued = True
            self.scheduler.submit(key, item.input_id, now)
        self.kick()
        return added

    def cancel(self, call: Call, terminate_containers: bool, reason: str = "Cancelled by user") -> None:
        """End what is queued; ask (or with `terminate_containers` force) what runs to end."""
        for item in list(call.inputs):
            if item.done:
                continue
            item.cancel_requested = True
            self.ledger.keep(item)
            self.outcomes.withdraw(item)
            if not item.running_on:
                self.outcomes.terminate(item, reason)
                continue
            for task_id in list(item.running_on):
                if terminate_containers:
                    self.stopper.stop(task_id, "a call was cancelled with terminate_containers=True")
                    self.server.workers.kill(task_id)
                else:
                    self.scheduler.cancel(task_id, item.input_id, self.server.clock.time())
                    self.tasks[task_id].cancelling.setdefault(item.input_id, 0.0)
                    self.tasks[task_id].heartbeat_wake.set()
            if terminate_containers:
                self.outcomes.terminate(item, reason)
        self.kick()

    # -- containers: what they tell

    def put_output(self, task_id: str, output: api.FunctionPutOutputsItem) -> None:
        """Take an attempt's result, unless the input has ended or another attempt has taken its place."""
        now = self.server.clock.time()
        item = self.ledger.inputs.get(output.input_id)
        task = self.tasks.get(task_id)
        if task is not None:
            if task.attempts.get(output.input_id, output.retry_count) != output.retry_count:
                return  # repeated, as its answer got lost, when this container has the next attempt already
            task.attempts.pop(output.input_id, None)
            task.cancelling.pop(output.input_id, None)
        self.scheduler.finished(task_id, output.input_id, now)
        self.kick()
        if item is None or item.done or item.retry_count != output.retry_count:
            return
        if task_id not in item.running_on or item.call.answering not in ("", task_id):
            return  # the container was preempted, and the input has begun elsewhere
        if item.queued and item.call.web and not item.call.answering:
            # Preempted: the SDK's wrapper of an ASGI app then ends without a response, but with success.
            item.running_on.discard(task_id)
            return
        item.running_on.discard(task_id)
        if output.result.status == api.GenericResult.GENERIC_STATUS_FAILURE and not item.cancel_requested:
            self.outcomes.withdraw(item)
            if self.outcomes.retry(item, now):
                return
        self.outcomes.finish(item, output.result, output.data_format, task_id, output.input_started_at)

    def start_failed(self, task_id: str, result: api.GenericResult) -> None:
        """A container reports why it couldn't get ready (or shut down); it will exit by itself."""
        if task_id in self.tasks:
            self.tasks[task_id].result = result

    def exited(self, task_id: str, returncode: int) -> None:
        """A container's last process is gone; negative return codes are signals."""
        task = self.tasks.pop(task_id, None)
        if task is None:
            return
        now = self.server.clock.time()
        task.finished_at = now
        slot = self.scheduler.slots[task_id]
        pool = self.scheduler.pools[slot.pool]
        failed_start = slot.ready_at is None and not slot.retiring
        how = _how_it_ended(task, returncode)
        lost = self.scheduler.gone(task_id, now)
        for item in [self.ledger.inputs[input_id] for input_id in lost if input_id in self.ledger.inputs]:
            if task_id not in item.running_on:
                continue
            item.running_on.discard(task_id)
            if not item.done and not item.running_on and not item.queued:
                self.outcomes.lost(task, item, how)
        if failed_start:
            self._start_failed(task, pool, how)
        task.exited.set()
        self.kick()

    def _start_failed(self, task: Task, pool: Pool, how: str) -> None:
        """A container ended before it was ready. For a deployed app others are started for ever, with
        back-off, and what waits goes on waiting; for an ephemeral one, what waits fails after a while
        (https://modal.com/docs/guide/retries#container-crashes).
        """
        reason = task.result.exception if task.result else how
        self.announce(task, f"ended before it was ready: {reason}")
        app = self.server.apps.apps.get(task.app_id)
        if app is not None and app.deployed:
            return
        tolerated = START_FAILURES_TOLERATED if task.result else CRASHES_BEFORE_READY_TOLERATED
        if pool.start_failures >= tolerated:
            self.outcomes.fail_waiting(pool.key, task, how)

    def announce(self, task: Task, text: str, item: Input | None = None) -> None:
        """Say something about a container in the log of its app, as the server itself, and in the server's
        own.
        """
        sentence = f"Container {task.task_id} of {task.function_name} {text}"
        log.info("%s", sentence)
        self.server.logs.append(
            app_id=task.app_id,
            function_id=task.function_id,
            call_id=item.call.call_id if item else "",
            input_id=item.input_id if item else "",
            task_id=task.task_id,
            descriptor=api.FILE_DESCRIPTOR_INFO,
            text=sentence + "\n",
        )

    def sole_input(self, task_id: str) -> Input | None:
        """The input that output of this container belongs to: known if it runs exactly one."""
        slot = self.scheduler.slots.get(task_id)
        if slot is None or len(slot.running) != 1:
            return None
        return self.ledger.inputs.get(next(iter(slot.running)))

    # -- starting and stopping containers

    def start_container(self, key: PoolKey) -> None:
        """One more container for this pool."""
        try:
            resolved = self.server.functions.resolve(key.function_id)
        except RpcError:
            self.scheduler.retire_pool(key)
            return
        now = self.server.clock.time()
        task = Task(
            ids.new_id(ids.TASK),
            resolved.app.app_id,
            key.function_id,
            resolved.record.name,
            resolved.app.environment,
            enqueued_at=now,
        )
        self.tasks[task.task_id] = task
        self.scheduler.started(task.task_id, key, now)
        self.spawn_background(self.server.workers.launch(task, resolved))

    def stop_container(self, task_id: str) -> None:
        """End a container: no more inputs, SIGINT, then SIGKILL. What it runs starts again elsewhere."""
        self.stopper.stop(task_id, "it was stopped", at_once=True)

    def preempt(self, task_id: str) -> list[str]:
        """Take a container away as Modal does when it needs the machine (see `Stopper.preempt`); returns the
        inputs that start again elsewhere.

        Raises:
            RpcError: NOT_FOUND, there is no such live container.
        """
        task = self.tasks.get(task_id)
        if task is None:
            raise RpcError(Status.NOT_FOUND, f"Container {task_id} not found.")
        return self.stopper.preempt(task)

    def _settings(self, task_id: str) -> PoolSettings:
        return self.scheduler.pools[self.scheduler.slots[task_id].pool].settings

    def end_app(self, app: App) -> None:
        """Its queued and running calls end, its containers are stopped."""
        for key in list(self.scheduler.pools):
            if self.server.functions.app_of(key.function_id) == app.app_id:
                self.scheduler.retire_pool(key)
        for call in self.ledger.of_app(app.app_id):
            for item in call.inputs:
                self.outcomes.terminate(item, f"The app {app.name or app.description} was stopped")
        for task in list(self.tasks.values()):
            if task.app_id == app.app_id:
                self.stopper.stop(task.task_id, "its app was stopped", at_once=True)
        self.kick()

    def supersede(self, app: App) -> None:
        """A new deployment is in force: old containers end what they run; what waits goes to new ones."""
        for key in list(self.scheduler.pools):
            if (
                key.generation < app.generation
                and self.server.functions.app_of(key.function_id) == app.app_id
            ):
                for input_id in self.scheduler.retire_pool(key):
                    self.outcomes.queue(self.ledger.inputs[input_id])
        self.kick()


def _how_it_ended(task: Task, returncode: int) -> str:
    """In words: what the worker found out, else what the server did, else the bare code."""
    code = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    note = task.exit_note or task.stop_reason
    return f"{note} ({code})" if note else code

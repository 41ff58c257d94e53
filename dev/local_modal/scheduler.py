"""Which containers exist and which input runs where: pools, autoscaling, back-off and deadlines, without
processes or I/O.

Every method takes the current time, so the whole behaviour can be tested with numbers. The engine carries out
what `plan` decides. A pool is the set of containers of one function variant at one generation of its app;
inputs wait in the pool's queue until a container asks for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from local_modal.input_queue import InputQueue

RESTART_DELAY_FIRST = 0.5
RESTART_DELAY_MAX = 10.0
"""Seconds before an input whose container died runs again: doubling from the first to the maximum."""
START_FAILURES_TOLERATED = 2
"""Containers of an ephemeral app that fail to import the user's code before everything waiting for them fails
with that error.
"""
CANCEL_LIMIT = 60.0
"""Seconds that user code may go on with a cancelled input before its container is ended."""


POOL_KEPT = 3600.0
"""Seconds that a pool is kept which nothing is in: each value of a class parameter makes one."""


class PoolKey(NamedTuple):
    """One variant of a function, at one deployment of its app."""

    function_id: str
    generation: int


@dataclass(frozen=True)
class PoolSettings:
    """How a pool scales. Times in seconds."""

    max_containers: int = 0
    """0 = limited only by the server's cap."""
    min_containers: int = 0
    buffer_containers: int = 0
    scaledown_window: float = 60.0
    concurrency: int = 1
    """Inputs at a time in one container."""
    batch_size: int = 0
    """More than 0: inputs are handed out in batches of up to this many."""
    batch_linger: float = 0.0
    """How long the first input of a batch waits for it to become full."""
    single_use: bool = False
    timeout: float = 300.0
    """Per attempt of an input, from its hand-out."""
    startup_timeout: float = 300.0
    """From the start of the process to its first request for inputs."""
    exclusive: bool = False
    """Containers of an older generation must have ended before one starts."""


@dataclass
class Slot:
    """One container as the scheduler sees it."""

    task_id: str
    pool: PoolKey
    started_at: float
    ready_at: float | None = None
    """When it first asked for inputs."""
    idle_since: float | None = None
    running: dict[str, float] = field(default_factory=dict)
    """Input ids with the time of their hand-out."""
    cancelled: dict[str, float] = field(default_factory=dict)
    """Running inputs that are to be cancelled, with the time when that was first asked."""
    retiring: bool = False
    """Gets no more inputs; told to exit when it next asks."""
    preempted: bool = False
    """Its machine is being taken away: it doesn't count any more, and its end has a deadline of its own."""
    taken: int = 0


@dataclass
class Pool:
    """The queue and the containers of one variant."""

    key: PoolKey
    settings: PoolSettings
    queue: InputQueue = field(default_factory=InputQueue)
    slots: dict[str, Slot] = field(default_factory=dict)
    start_failures: int = 0
    """Containers in a row that died before they were ready."""
    no_start_before: float = 0.0
    retired: bool = False
    empty_since: float | None = None
    """When it was first seen without inputs and containers."""

    def live(self) -> list[Slot]:
        """Containers that may still take inputs."""
        return [slot for slot in self.slots.values() if not slot.retiring]

    def waiting(self) -> list[str]:
        """The inputs in the queue, in the order in which they will start."""
        return self.queue.all()

    def batch_due(self, now: float) -> float:
        """The moment from which a container that asks gets something; infinity if nothing waits."""
        due = self.queue.due(now)
        if due >= max(1, self.settings.batch_size):
            return now
        return self.queue.oldest() + self.settings.batch_linger


class Handout(NamedTuple):
    """The answer to a container that asks for inputs: inputs, or the order to exit, or neither (ask
    again).
    """

    input_ids: list[str]
    exit: bool


@dataclass
class Plan:
    """What should happen now, and when to plan again if nothing else happens before."""

    starts: list[PoolKey] = field(default_factory=list)
    startup_timeouts: list[str] = field(default_factory=list)
    """Containers that didn't get ready in time."""
    input_timeouts: list[tuple[str, str]] = field(default_factory=list)
    """(task id, input id) whose attempt took too long."""
    ignored_cancels: list[str] = field(default_factory=list)
    """Containers that have gone on with a cancelled input for too long; each is told once."""
    wake: list[str] = field(default_factory=list)
    """Containers whose pending request for inputs has an answer now."""
    wake_at: float = math.inf
    starved: bool = False
    """Inputs wait only because the server's cap on containers is reached."""

    def at(self, moment: float) -> None:
        """Plan again at `moment` at the latest."""
        self.wake_at = min(self.wake_at, moment)


def restart_delay(losses: int) -> float:
    """Seconds to wait before an input starts again after its container died for the `losses`-th time."""
    return min(RESTART_DELAY_MAX, RESTART_DELAY_FIRST * 2 ** min(losses - 1, 16))


class Scheduler:
    """The pools of all functions under one cap on the number of containers."""

    def __init__(self, max_containers: int, cancel_limit: float = CANCEL_LIMIT) -> None:
        self.max_containers = max_containers
        self.cancel_limit = cancel_limit
        self.pools: dict[PoolKey, Pool] = {}
        self._queued: dict[str, Pool] = {}
        """Where each input waits."""
        self.slots: dict[str, Slot] = {}

    def ensure_pool(self, key: PoolKey, settings: PoolSettings) -> Pool:
        """The pool of `key`, with its settings brought up to date."""
        pool = self.pools.setdefault(key, Pool(key, settings))
        pool.settings = settings
        return pool

    def submit(self, key: PoolKey, input_id: str, now: float) -> None:
        """Queue a new input."""
        self._add(key, input_id).add(input_id, now)

    def resubmit(self, key: PoolKey, input_id: str, now: float, delay: float) -> None:
        """Queue an input again, to start before the new ones once `delay` seconds have passed."""
        self._add(key, input_id).add_again(input_id, now, delay)

    def _add(self, key: PoolKey, input_id: str) -> InputQueue:
        self._queued[input_id] = pool = self.pools[key]
        return pool.queue

    def withdraw(self, input_id: str) -> bool:
        """Take a queued input out; False if it isn't queued."""
        pool = self._queued.pop(input_id, None)
        return pool is not None and pool.queue.remove(input_id)

    def started(self, task_id: str, key: PoolKey, now: float) -> None:
        """A container's process is being started."""
        slot = Slot(task_id, key, now)
        self.slots[task_id] = slot
        self.pools[key].slots[task_id] = slot

    def claim(self, task_id: str, now: float) -> Handout:
        """Answer a container that has a free place for an input (or a batch)."""
        slot = self.slots.get(task_id)
        if slot is None:
            return Handout([], exit=True)
        pool = self.pools[slot.pool]
        if slot.ready_at is None:
            slot.ready_at = now
            pool.start_failures = 0
        if slot.retiring:
            return Handout([], exit=True)
        input_ids = []
        if pool.batch_due(now) <= now:
            input_ids = pool.queue.take(max(1, pool.settings.batch_size))
        for input_id in input_ids:
            del self._queued[input_id]
        slot.running.update(dict.fromkeys(input_ids, now))
        if input_ids:
            slot.idle_since = None
            slot.taken += 1
            slot.retiring = pool.settings.single_use
        elif not slot.running and slot.idle_since is None:
            slot.idle_since = now
        return Handout(input_ids, exit=False)

    def redeliver(self, task_id: str, input_id: str, now: float) -> None:
        """Record that `input_id`, which runs elsewhere, was handed to `task_id` as well."""
        slot = self.slots[task_id]
        slot.running[input_id] = now
        slot.idle_since = None

    def cancel(self, task_id: str, input_id: str, now: float) -> None:
        """Record that this container has been asked to cancel an input that it runs."""
        self.slots[task_id].cancelled.setdefault(input_id, now)

    def finished(self, task_id: str, input_id: str, now: float) -> None:
        """An attempt ended in this container."""
        slot = self.slots.get(task_id)
        if slot is None:
            return
        slot.cancelled.pop(input_id, None)
        if slot.running.pop(input_id, None) is not None and not slot.running:
            slot.idle_since = now

    def retire(self, task_ids: Iterable[str]) -> None:
        """Let these containers end what they run and exit."""
        for task_id in task_ids:
            if task_id in self.slots:
                self.slots[task_id].retiring = True

    def preempt(self, task_id: str) -> None:
        """This container is being taken away; others may start in its place at once."""
        slot = self.slots.get(task_id)
        if slot is not None:
            slot.retiring = slot.preempted = True

    def retire_pool(self, key: PoolKey) -> list[str]:
        """No new containers here; returns the inputs that were waiting."""
        pool = self.pools.get(key)
        if pool is None:
            return []
        pool.retired = True
        self.retire(list(pool.slots))
        waiting = pool.queue.clear()
        for input_id in waiting:
            del self._queued[input_id]
        self._forget_if_empty(pool)
        return waiting

    def gone(self, task_id: str, now: float) -> list[str]:
        """A container's last process ended; returns the inputs that it hadn't finished."""
        slot = self.slots.pop(task_id, None)
        if slot is None:
            return []
        pool = self.pools[slot.pool]
        pool.slots.pop(task_id, None)
        if slot.ready_at is None and not slot.retiring:
            pool.start_failures += 1
            pool.no_start_before = now + restart_delay(pool.start_failures)
        self._forget_if_empty(pool)
        return list(slot.running)

    def plan(self, now: float) -> Plan:
        """Decide what to start, wake, retire and time out."""
        plan = Plan()
        for pool in list(self.pools.values()):
            self._check_deadlines(pool, plan, now)
            self._scale_down(pool, plan, now)
            self._forget_if_unused(pool, now)
        self._scale_up(plan, now)
        for pool in self.pools.values():
            batch_due = pool.batch_due(now)
            plan.at(pool.queue.next_due())
            if batch_due > now and any(slot.ready_at is not None for slot in pool.live()):
                plan.at(batch_due)
            for slot in pool.slots.values():
                if slot.retiring or (slot.ready_at is not None and batch_due <= now):
                    plan.wake.append(slot.task_id)
        return plan

    def _check_deadlines(self, pool: Pool, plan: Plan, now: float) -> None:
        settings = pool.settings
        for slot in pool.slots.values():
            if slot.preempted:
                continue
            if slot.ready_at is None and not slot.retiring:
                deadline = slot.started_at + settings.startup_timeout
                if now >= deadline:
                    plan.startup_timeouts.append(slot.task_id)
                else:
                    plan.at(deadline)
            for input_id, handed_out in slot.running.items():
                deadline = handed_out + settings.timeout
                if now >= deadline:
                    plan.input_timeouts.append((slot.task_id, input_id))
                else:
                    plan.at(deadline)
            if slot.cancelled:
                deadline = min(slot.cancelled.values()) + self.cancel_limit
                if now >= deadline:
                    plan.ignored_cancels.append(slot.task_id)
                    slot.cancelled.clear()
                else:
                    plan.at(deadline)

    def _scale_down(self, pool: Pool, plan: Plan, now: float) -> None:
        live = pool.live()
        keep = pool.settings.min_containers
        idle = sorted(
            (slot for slot in live if slot.idle_since is not None and not slot.running),
            key=lambda slot: slot.idle_since or 0.0,
        )
        spare = len(live) - keep
        for slot in idle[: max(0, spare)]:
            moment = (slot.idle_since or 0.0) + pool.settings.scaledown_window
            if now >= moment:
                slot.retiring = True
            else:
                plan.at(moment)

    def _scale_up(self, plan: Plan, now: float) -> None:
        wanted = [(key, self._missing(pool, plan, now)) for key, pool in self.pools.items()]
        # Who has waited longest is served first; warm containers that nobody waits for come last.
        wanted.sort(key=lambda item: self._oldest(self.pools[item[0]]))
        room = self.max_containers - _counted(self.slots.values())
        for key, count in wanted:
            for _ in range(count):
                if room > 0:
                    plan.starts.append(key)
                    room -= 1
                    continue
                if self.pools[key].queue.due(now):
                    plan.starved = True
                    if not self.pools[key].live() and key not in plan.starts:
                        self._make_room(key)
                break

    def _missing(self, pool: Pool, plan: Plan, now: float) -> int:
        """How many containers this pool should have in addition."""
        settings = pool.settings
        if pool.retired or (settings.exclusive and self._outlived(pool.key)):
            return 0
        live = pool.live()
        per_container = max(1, settings.concurrency, settings.batch_size)
        places = sum(max(0, per_container - len(slot.running)) for slot in live)
        due = pool.queue.due(now)
        missing = math.ceil(max(0, due - places) / per_container)
        if due or any(slot.running for slot in live):
            missing += settings.buffer_containers
        missing = max(missing, settings.min_containers - len(live))
        if settings.max_containers:
            # Retiring containers count: the limit is on what runs at the same time.
            missing = min(missing, settings.max_containers - _counted(pool.slots.values()))
        if missing > 0 and now < pool.no_start_before:
            plan.at(pool.no_start_before)
            return 0
        return max(0, missing)

    def _outlived(self, key: PoolKey) -> bool:
        """Whether another generation of this pool still has containers."""
        return any(
            pool.slots
            for pool in self.pools.values()
            if pool.key.function_id == key.function_id and pool.key.generation != key.generation
        )

    @staticmethod
    def _oldest(pool: Pool) -> float:
        return pool.queue.oldest()

    def _make_room(self, key: PoolKey) -> None:
        """Retire the longest idle container of another pool: a full server must not starve a function that
        has none.
        """
        if any(slot.retiring for slot in self.slots.values()):
            return  # one is on its way out already
        idle = [slot for slot in self.slots.values() if slot.idle_since is not None and slot.pool != key]
        if idle:
            min(idle, key=lambda slot: slot.idle_since or 0.0).retiring = True

    def _forget_if_unused(self, pool: Pool, now: float) -> None:
        """Whoever queues something makes the pool again."""
        if pool.slots or len(pool.queue) or pool.settings.min_containers:
            pool.empty_since = None
        elif pool.empty_since is None:
            pool.empty_since = now
        elif now >= pool.empty_since + POOL_KEPT:
            self.pools.pop(pool.key, None)

    def _forget_if_empty(self, pool: Pool) -> None:
        if pool.retired and not pool.slots and not len(pool.queue):
            self.pools.pop(pool.key, None)


def _counted(slots: Iterable[Slot]) -> int:
    return sum(not slot.preempted for slot in slots)

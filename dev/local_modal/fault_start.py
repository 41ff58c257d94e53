"""Faults at the start of containers: no capacity, an image that can't be had."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from local_modal.faults import FAIL, STALL, Fault

if TYPE_CHECKING:
    from local_modal.model import Task
    from local_modal.server import Server

LOOK_AGAIN = 0.05


class StartFailed(Exception):
    """A fault keeps this container from starting."""


async def before_start(server: Server, task: Task) -> None:
    """Let a container wait or fail as the faults want it; returns when it may start or is no longer wanted.

    Raises:
        StartFailed: it can't start.
    """
    if not server.faults.armed:
        return
    strikes = server.faults.strikes(server.targets.start(task))
    await asyncio.sleep(sum(strike.delay for strike in strikes))
    for strike in strikes:
        if strike.effect == FAIL:
            raise StartFailed(strike.message)
        if strike.effect == STALL:
            await _capacity(server, task, strike.fault)


async def _capacity(server: Server, task: Task, fault: Fault) -> None:
    """Wait until the fault ends, its limit has room, or the container is to stop."""
    while not task.stop_reason and not task.exited.is_set() and not fault.ended.is_set():
        if fault.spec.limit and server.targets.running() < fault.spec.limit:
            return
        server.faults.known()  # ends the ones whose time is over
        await asyncio.sleep(LOOK_AGAIN)

"""Containers that may not start yet, or not at all, without processes."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from local_modal.fault_start import StartFailed, before_start
from local_modal.faults import Faults, FaultSpec, Visit
from local_modal.model import Task


class StandIn:
    """What of a server the start of a container asks: its faults, and how many containers run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.live = 0
        self.faults = Faults(1, lambda: self.now)
        self.targets = self

    def running(self) -> int:
        return self.live

    def start(self, task: Task) -> Visit:
        return Visit("START", task.task_id, function=lambda: task.function_name, load=self.running)

    def add(self, fault: str, **settings: Any) -> None:
        self.faults.add(FaultSpec.of({"fault": fault, **settings}))

    async def begin(self, task: Task) -> None:
        await before_start(cast(Any, self), task)


def task(function_name: str = "work") -> Task:
    return Task("ta-1", "ap-1", "fu-1", function_name, "main", enqueued_at=0.0)


def test_a_container_starts_when_a_place_is_free() -> None:
    async def run() -> None:
        server = StandIn()
        server.add("quota-containers", limit=2)
        server.live = 1
        await server.begin(task())
        server.live = 2
        waiting = asyncio.ensure_future(server.begin(task()))
        while not server.faults.known()[0].struck:
            await asyncio.sleep(0.001)
        assert not waiting.done()
        server.live = 1
        await asyncio.wait_for(waiting, 30)

    asyncio.run(run())


@pytest.mark.parametrize("end", ["cleared", "expired", "stopped"])
def test_a_container_that_waits_for_capacity_is_let_go(end: str) -> None:
    async def run() -> None:
        server, waits = StandIn(), task()
        server.add("start-stalls", seconds=10)
        waiting = asyncio.ensure_future(server.begin(waits))
        while not server.faults.known()[0].struck:
            await asyncio.sleep(0.001)
        assert not waiting.done()
        if end == "cleared":
            server.faults.clear_all()
        elif end == "expired":
            server.now = 10.0
        else:
            waits.stop_reason = "the server is stopping"
        await asyncio.wait_for(waiting, 30)

    asyncio.run(run())


def test_a_start_fails_for_the_functions_that_are_meant() -> None:
    async def run() -> None:
        server = StandIn()
        await server.begin(task())
        server.add("start-fails", function="work", message="no such image")
        await server.begin(task("other"))
        with pytest.raises(StartFailed, match=r"no such image \[fault f1\]"):
            await server.begin(task())

    asyncio.run(run())

"""The kinds of functions that are more than a call and its result.

Without postponed annotations: `modal.parameter` needs the type itself.
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator

import modal

app = modal.App("shapes")
ME = os.environ.get("MODAL_TASK_ID", "")


@app.function(max_containers=1)
@modal.batched(max_batch_size=3, wait_ms=700)
def batch(numbers: list[int]) -> list[tuple[int, int]]:
    """Each number doubled, with the size of the batch that it came in."""
    return [(number * 2, len(numbers)) for number in numbers]


@app.function(max_containers=1)
@modal.concurrent(max_inputs=3)
def together(parties: int) -> str:
    """Returns when so many inputs run at the same time in this container."""
    barrier.wait(timeout=60) if parties == 3 else None
    return ME


barrier = threading.Barrier(3)


@app.function(max_containers=1)
@modal.concurrent(max_inputs=10)
async def sleepers(seconds: float) -> str:
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        modal.Queue.from_name("shapes-events", create_if_missing=True).put("cancelled")
        raise
    return ME


@app.function()
async def count(until: int, fail_at: int = -1) -> AsyncIterator[int]:
    for number in range(until):
        if number == fail_at:
            raise LookupError(f"at {number}")
        yield number


@app.function()
def blocks(number: int, size: int) -> Iterator[bytes]:
    for _ in range(number):
        yield b"x" * size


@app.function(max_containers=4)
def inverse(number: int) -> float:
    time.sleep(0.5 * (number == 1))
    return 1 / number


@app.function(max_containers=2)
def note(number: int) -> None:
    modal.Queue.from_name("shapes-notes", create_if_missing=True).put(number)


@app.cls()
class Counter:
    start: int = modal.parameter(default=0)
    name: str = modal.parameter(default="nobody")

    @modal.enter()
    def begin(self) -> None:
        self.value = self.start

    @modal.method()
    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    @modal.method()
    def up_to(self, end: int) -> Iterator[int]:
        yield from range(self.value, end)

    @modal.exit()
    def end(self) -> None:
        events = modal.Queue.from_name("shapes-events", create_if_missing=True)
        events.put(f"{self.name} ended at {self.value}")

"""Where the server's time comes from, so that schedules, expiry and scaling can be tested without waiting."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Wall time in epoch seconds and a matching sleep."""

    def time(self) -> float:
        """Seconds since the epoch."""

    async def sleep(self, seconds: float) -> None:
        """Return when `time()` has advanced by `seconds`."""


class SystemClock:
    """The machine's own clock, which may be put forward.

    Args:
        offset: seconds by which it is ahead of the machine's.
    """

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset
        self._sleepers: dict[asyncio.Future[None], None] = {}
        """In the order of their arrival."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time() + self.offset

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass at once; whoever sleeps that long wakes. Only on the loop of the sleepers.

        Raises:
            ValueError: time doesn't go backwards.
        """
        if not seconds >= 0:
            raise ValueError(f"a clock can't be put back: {seconds}")
        self.offset += seconds
        for sleeper in list(self._sleepers):
            if not sleeper.done():
                sleeper.set_result(None)

    async def sleep(self, seconds: float) -> None:
        """Sleep until `time()` is `seconds` later."""
        loop = asyncio.get_running_loop()
        wake_at = loop.time() + seconds + self.offset
        while True:
            remaining = wake_at - loop.time() - self.offset
            sleeper: asyncio.Future[None] = loop.create_future()
            timer = loop.call_later(max(0.0, remaining), _wake, sleeper)
            self._sleepers[sleeper] = None
            try:
                await sleeper
            finally:
                timer.cancel()
                del self._sleepers[sleeper]
            if loop.time() + self.offset >= wake_at - 1e-6:
                return


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)

"""Does Modal answer at the moment? What all background calls of one dispatcher know together.

With many tasks, an outage would be a thousand warnings, and its end would be found by each task at the end
of its own pause. So it is told once, again every minute, and the first call that succeeds ends everybody's
pause. Used on the dispatcher's loop only.
"""

from __future__ import annotations

import asyncio
import logging
import time

log = logging.getLogger(__name__)

REMIND_SECONDS = 60.0
LEAST_PART = 0.25
"""The part of a pause that even good news does not shorten: a call may fail while others succeed."""


class Outage:
    """Knows whether the last call to Modal failed in passing."""

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self._over.set()
        self._began = 0.0
        self._told = 0.0

    def failed(self, reason: str) -> None:
        """Note that a call failed for a reason that passes."""
        now = time.monotonic()
        if self._over.is_set():
            self._over.clear()
            self._began = now
            # Short ones that follow each other are one for the reader of the log.
            if now - self._told < REMIND_SECONDS:
                return
        elif now - self._told < REMIND_SECONDS:
            return
        self._told = now
        log.warning(
            "%s; the executor keeps trying (for %.0f s so far), tasks stay queued", reason, now - self._began
        )

    def answered(self) -> None:
        """Note that a call succeeded."""
        if not self._over.is_set():
            self._over.set()
            log.info("Modal answers again after %.1f s", time.monotonic() - self._began)

    async def pause(self, seconds: float, stop: asyncio.Event | None = None) -> None:
        """Wait before the next attempt: until Modal answers others, ``stop``, or ``seconds`` are over."""
        least = seconds * LEAST_PART
        if await _within(least, [stop]):
            return
        await _within(seconds - least, [stop, self._over])


async def _within(seconds: float, events: list[asyncio.Event | None]) -> bool:
    """Wait for the first of several events; return whether one came in time."""
    waits = [asyncio.ensure_future(event.wait()) for event in events if event is not None]
    if not waits:
        await asyncio.sleep(seconds)
        return False
    try:
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for wait in waits:
            wait.cancel()

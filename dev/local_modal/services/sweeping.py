"""What nothing refers to any more is removed, so that a server and its state directory don't grow with every
deployment and request: expired calls, variants of web requests, blobs, images, mounts, the files in them, and
the directories in which they were laid out.
"""

from __future__ import annotations

import asyncio
import logging
import time

from local_modal.rpc import Service

log = logging.getLogger(__name__)

INTERVAL = 600.0


class SweepService(Service):
    """Sweeps regularly. All times here are the machine's own, as those of the files are; calls and variants
    go by the server's clock.
    """

    async def start(self) -> None:
        self._sweeper = asyncio.ensure_future(self._sweep_regularly())

    async def stop(self) -> None:
        self._sweeper.cancel()

    async def sweep(self, now: float) -> None:
        """Remove everything that nothing refers to and that wasn't used lately."""
        self.server.engine.ledger.expire()
        self.server.functions.sweep()
        await self.server.blobs.sweep(now)
        definitions = self.server.functions.definitions()
        kept_images = self.server.images.sweep({definition.image_id for definition in definitions}, now)
        used = {mount_id for definition in definitions for mount_id in definition.mount_ids}
        await self.server.mounts.sweep(used | kept_images, now, self._oldest_container(now))

    def _oldest_container(self, now: float) -> float:
        """A time before which no container that still lives was started."""
        # The clock may have been put forward since, hence only a lower bound.
        ahead = self.server.clock.time() - time.time()
        return min((task.enqueued_at - ahead for task in self.server.engine.tasks.values()), default=now)

    async def _sweep_regularly(self) -> None:
        while True:
            # First the pause: the calls that a former server has left are loaded after the services.
            await asyncio.sleep(INTERVAL)
            try:
                await self.sweep(time.time())
            except Exception:
                # Everything works without it; what remains is for the next time.
                log.exception("Removing what nothing refers to failed")

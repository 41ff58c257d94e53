"""What the services of named objects (Dicts, Queues, Secrets) have in common: the life of their registry, and
the regular removal of what has expired in it.
"""

from __future__ import annotations

import asyncio
import logging

from local_modal.objects import Objects
from local_modal.rpc import Service

log = logging.getLogger(__name__)


class ObjectService(Service):
    """A service whose objects are in `objects`, which a subclass makes in its constructor."""

    objects: Objects
    purge_interval: float | None = None
    """Seconds between two calls of `purge`; None = never."""

    async def start(self) -> None:
        """Load the objects, then what is in them."""
        await self.objects.start()
        await self.load()
        self._purger = asyncio.create_task(self._purge_regularly()) if self.purge_interval else None

    async def stop(self) -> None:
        """End the background work."""
        await self.objects.stop()
        if self._purger is not None:
            self._purger.cancel()

    async def load(self) -> None:
        """Read the contents of the objects, which are known already."""

    def purge(self) -> None:
        """Remove contents that have expired; reads never see them anyway."""

    async def release_app(self, app_id: str) -> None:
        """Remove what an app that has ended owned anonymously."""
        await self.objects.release_app(app_id)

    async def _purge_regularly(self) -> None:
        while self.purge_interval is not None:
            await self.server.clock.sleep(self.purge_interval)
            try:
                self.purge()
            except Exception:
                # What can't be removed now must not stop everything else from being removed later.
                log.exception("%s: removing what has expired failed", type(self).__name__)

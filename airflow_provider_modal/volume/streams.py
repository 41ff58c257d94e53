"""How does a file larger than memory come off the Volume?

The SDK hands a file out in blocks and fetches as many ahead as the machine has cores; ``Chunks``
hands them on one at a time and, when a connection breaks, goes on where it was.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

BLOCK_BYTES = 8 * 1024 * 1024
"""Size of the blocks that Modal keeps a Volume's files in."""


class OwnLoop:
    """An event loop of its own, in a thread of its own, for a generator that takes one step at a time.

    A generator belongs to the loop that ran its first step, and a caller's thread may run a loop already.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> OwnLoop:
        return self

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        """Run one coroutine to its end and return its result."""
        return self._thread.submit(self._loop.run_until_complete, step).result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.run(self._loop.shutdown_asyncgens())
        finally:
            self._thread.shutdown()
            self._loop.close()


class Chunks:
    """A file's chunks in their order, each once, whatever fails in between.

    :param open_file: begins to read the file at its beginning; the SDK can't begin elsewhere.
    """

    def __init__(self, open_file: Callable[[], AsyncGenerator[bytes, None]]) -> None:
        self._open = open_file
        self._source: AsyncGenerator[bytes, None] | None = None
        self._position = 0
        self._delivered = 0

    def most_bytes(self) -> int:
        """Return how many bytes may have to arrive before the next step is done."""
        ahead = BLOCK_BYTES * (os.cpu_count() or 1)
        return ahead + (self._delivered if self._source is None else 0)

    async def step(self) -> bytes | None:
        """Return the next chunk, never an empty one; None at the end.

        May be repeated after an error: the file is then read from its beginning again, and what was
        delivered before is left out.
        """
        if self._source is None:
            self._source, self._position = self._open(), 0
        source = self._source
        try:
            async for chunk in source:
                new = chunk[max(self._delivered - self._position, 0) :]
                self._position += len(chunk)
                if new:
                    self._delivered += len(new)
                    return new
        except BaseException:
            self._source = None
            await source.aclose()
            raise
        return None

    async def close(self) -> None:
        """End the reading ahead."""
        if self._source is not None:
            await self._source.aclose()
            self._source = None

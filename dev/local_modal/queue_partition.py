"""One FIFO partition of a Queue: its items, its limits, and whose turn it is to take them. Knows nothing of
RPCs or the disk."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

MAX_ITEMS = 5_000
MAX_BYTES = 64 * 2**20
"""Both from `modal/queue.py`."""


class PartitionFull(Exception):
    """The items don't fit; none has been added."""


class Item(NamedTuple):
    """A value with its number, which grows within a partition and is never given twice."""

    number: int
    value: bytes


class Partition:
    """Items in order, and getters in the order in which they came.

    Args:
        next_number: what the next item is called.
        expires_at: epoch seconds at which the items are to be cleared; the owner looks at it.
    """

    def __init__(self, next_number: int = 1, expires_at: float = 0.0) -> None:
        self._next_number = next_number
        self.expires_at = expires_at
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._getters: deque[asyncio.Future[bool]] = deque()
        self._watchers: set[asyncio.Future[bool]] = set()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def has_getters(self) -> bool:
        """Whether somebody waits for an item to take."""
        return bool(self._getters)

    @property
    def in_use(self) -> bool:
        """Whether somebody holds on to this partition, be it only to look."""
        return bool(self._getters) or bool(self._watchers)

    def check_room(self, values: Iterable[bytes]) -> None:
        """Whether all of `values` can be appended.

        Raises:
            PartitionFull: they can't.
        """
        sizes = [len(value) for value in values]
        if len(self._items) + len(sizes) > MAX_ITEMS:
            raise PartitionFull(
                f"The queue partition is full: it can hold {MAX_ITEMS} items and has {len(self._items)}."
            )
        if self._bytes + sum(sizes) > MAX_BYTES:
            raise PartitionFull(
                f"The queue partition is full: it can hold {MAX_BYTES} bytes and has {self._bytes}."
            )

    def numbered(self, values: Sequence[bytes]) -> list[Item]:
        """What `append` would be given for these values."""
        return [Item(self._next_number + index, value) for index, value in enumerate(values)]

    def described(self, added: Sequence[Item], expires_at: float) -> bytes:
        """The constructor's arguments, as JSON, for the time after `append(added, expires_at)`."""
        return json.dumps({"next_number": self._next_number + len(added), "expires_at": expires_at}).encode()

    def append(self, items: Iterable[Item], expires_at: float) -> None:
        """Add items made by `numbered` and wake whoever waits for them."""
        for item in items:
            self.restore(item)
            self._next_number = item.number + 1
        self.expires_at = expires_at
        for watcher in self._watchers:
            _resolve(watcher, True)
        self._wake_first()

    def restore(self, item: Item) -> None:
        """Put an item back that was there when the server stopped; in ascending order of numbers."""
        self._items.append(item)
        self._bytes += len(item.value)

    def first(self, count: int) -> list[Item]:
        """The next items, at most `count`, left where they are."""
        return [item for item, _ in zip(self._items, range(count), strict=False)]

    def after(self, number: int) -> list[Item]:
        """The items with a higher number, left where they are."""
        return [item for item in self._items if item.number > number]

    def remove(self, items: Sequence[Item]) -> None:
        """Take away what `first` returned a moment ago."""
        for item in items:
            if self._items.popleft() != item:
                raise RuntimeError("items have to be removed in order")
            self._bytes -= len(item.value)

    @asynccontextmanager
    async def turn(self, timeout: float) -> AsyncIterator[bool]:
        """Wait until there are items and everyone who came before has been served; False after `timeout`
        seconds.

        Inside the block nobody else gets a turn. Whoever is cancelled while waiting passes the turn on.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._getters.append(future)
        timer = loop.call_later(timeout, _resolve, future, False)
        try:
            if self._getters[0] is future:
                self._wake_first()
            yield await future
        finally:
            timer.cancel()
            self._getters.remove(future)
            self._wake_first()

    async def wait_for_put(self, timeout: float) -> None:
        """Return when something has been appended, or after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._watchers.add(future)
        timer = loop.call_later(timeout, _resolve, future, False)
        try:
            await future
        finally:
            timer.cancel()
            self._watchers.discard(future)

    def wake_all(self) -> None:
        """Let everybody look again, because the Queue is gone."""
        for waiter in (*self._getters, *self._watchers):
            _resolve(waiter, True)

    def _wake_first(self) -> None:
        if self._items and self._getters:
            _resolve(self._getters[0], True)


def _resolve(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)

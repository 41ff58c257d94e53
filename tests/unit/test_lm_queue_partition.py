"""One partition of a Queue: limits, order, and turns of getters that wait, give up or go away."""

from __future__ import annotations

import asyncio

import pytest

from local_modal.queue_partition import MAX_BYTES, MAX_ITEMS, Item, Partition, PartitionFull

LONG = 30.0


def append(partition: Partition, *values: bytes) -> None:
    partition.append(partition.numbered(values), expires_at=1e12)


async def take(partition: Partition, count: int = 1, timeout: float = LONG) -> list[bytes]:
    async with partition.turn(timeout) as awake:
        if not awake:
            return []
        items = partition.first(count)
        partition.remove(items)
        return [item.value for item in items]


async def waiting(partition: Partition, count: int = 1, timeout: float = LONG) -> asyncio.Task[list[bytes]]:
    """A getter that has taken its place in the line."""
    task = asyncio.create_task(take(partition, count, timeout))
    await asyncio.sleep(0)
    return task


def test_items_keep_their_order() -> None:
    partition = Partition()
    append(partition, b"1", b"2")
    append(partition, b"3")
    assert [item.value for item in partition.first(2)] == [b"1", b"2"]
    partition.remove(partition.first(2))
    assert [item.value for item in partition.after(0)] == [b"3"]
    assert len(partition) == 1


def test_numbers_are_never_given_twice() -> None:
    partition = Partition()
    append(partition, b"1", b"2")
    partition.remove(partition.first(2))
    append(partition, b"3")
    assert partition.first(1) == [Item(3, b"3")]
    assert partition.after(2) == [Item(3, b"3")]
    assert partition.after(3) == []


def test_the_number_of_items_is_limited_and_nothing_is_added_in_part() -> None:
    partition = Partition()
    append(partition, *[b"x"] * (MAX_ITEMS - 1))
    partition.check_room([b"x"])
    with pytest.raises(PartitionFull, match=str(MAX_ITEMS)):
        partition.check_room([b"x", b"x"])
    assert len(partition) == MAX_ITEMS - 1


def test_the_size_is_limited_and_comes_free_again() -> None:
    partition = Partition()
    append(partition, bytes(MAX_BYTES))
    with pytest.raises(PartitionFull, match=str(MAX_BYTES)):
        partition.check_room([b"x"])
    partition.remove(partition.first(1))
    partition.check_room([bytes(MAX_BYTES)])


async def _getters_are_served_in_order() -> None:
    partition = Partition()
    first, second, third = [await waiting(partition) for _ in range(3)]
    append(partition, b"1", b"2")
    assert await first == [b"1"]
    assert await second == [b"2"]
    assert not third.done()
    append(partition, b"3")
    assert await third == [b"3"]
    assert not partition.in_use


async def _a_getter_takes_what_is_there_without_waiting_for_more() -> None:
    partition = Partition()
    getter = await waiting(partition, count=10)
    append(partition, b"1", b"2")
    assert await getter == [b"1", b"2"]


async def _a_getter_that_goes_away_eats_nothing() -> None:
    partition = Partition()
    gone, next_one = await waiting(partition), await waiting(partition)
    gone.cancel()
    append(partition, b"1")
    assert await next_one == [b"1"]
    assert gone.cancelled()


async def _a_getter_that_goes_away_in_the_moment_of_waking_passes_the_turn_on() -> None:
    partition = Partition()
    gone, next_one = await waiting(partition), await waiting(partition)
    append(partition, b"1")
    gone.cancel()
    assert await next_one == [b"1"]
    assert len(partition) == 0


async def _the_last_getter_to_go_away_leaves_the_item() -> None:
    partition = Partition()
    gone = await waiting(partition)
    append(partition, b"1")
    gone.cancel()
    await asyncio.wait([gone])
    assert partition.first(1) == [Item(1, b"1")]


async def _a_getter_gives_up_after_its_timeout() -> None:
    partition = Partition()
    assert await take(partition, timeout=0.01) == []
    append(partition, b"1")
    assert await take(partition, timeout=0.01) == [b"1"]


async def _who_looks_is_woken_by_a_put_and_takes_nothing() -> None:
    partition = Partition()
    looking = asyncio.create_task(partition.wait_for_put(LONG))
    await asyncio.sleep(0)
    append(partition, b"1")
    await looking
    assert len(partition) == 1
    await partition.wait_for_put(0.01)
    assert not partition.in_use


async def _everybody_looks_again_when_the_queue_is_gone() -> None:
    partition = Partition()
    getters = [await waiting(partition), await waiting(partition)]
    partition.wake_all()
    assert await asyncio.gather(*getters) == [[], []]


@pytest.mark.parametrize(
    "scenario",
    [
        _getters_are_served_in_order,
        _a_getter_takes_what_is_there_without_waiting_for_more,
        _a_getter_that_goes_away_eats_nothing,
        _a_getter_that_goes_away_in_the_moment_of_waking_passes_the_turn_on,
        _the_last_getter_to_go_away_leaves_the_item,
        _a_getter_gives_up_after_its_timeout,
        _who_looks_is_woken_by_a_put_and_takes_nothing,
        _everybody_looks_again_when_the_queue_is_gone,
    ],
    ids=lambda scenario: scenario.__name__.strip("_"),
)
def test_turns(scenario) -> None:  # type: ignore[no-untyped-def]
    asyncio.run(asyncio.wait_for(scenario(), timeout=30))

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_modal.volume.streams import Chunks, OwnLoop


@given(
    pieces=st.lists(st.binary(max_size=5), max_size=6),
    breaks=st.lists(st.integers(0, 5), max_size=4),
)
def test_every_byte_is_delivered_once_wherever_connections_break(
    pieces: list[bytes], breaks: list[int]
) -> None:
    """Each attempt cuts the file differently, as nothing promises the same blocks again."""
    content = b"".join(pieces)
    attempts = iter(breaks)

    async def read() -> AsyncGenerator[bytes, None]:
        fails_after = next(attempts, None)
        size = 1 if fails_after is None else fails_after + 1
        for number, start in enumerate(range(0, len(content), size)):
            if number == fails_after:
                raise ConnectionResetError
            yield content[start : start + size]
        if fails_after is not None:
            raise ConnectionResetError

    async def collect() -> list[bytes]:
        chunks = Chunks(read)
        found: list[bytes] = []
        while True:
            try:
                chunk = await chunks.step()
            except ConnectionResetError:
                continue
            if chunk is None:
                return found
            found.append(chunk)

    found = asyncio.run(collect())

    assert b"".join(found) == content
    assert all(found)


def test_an_own_loop_works_where_another_runs() -> None:
    async def answer() -> int:
        return 42

    async def inside() -> int:
        with OwnLoop("test") as loop:
            return loop.run(answer())

    assert asyncio.run(inside()) == 42

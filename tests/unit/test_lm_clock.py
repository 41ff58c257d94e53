"""The clock that can be put forward."""

from __future__ import annotations

import asyncio

import pytest

from local_modal.clock import SystemClock


def test_advancing_wakes_those_whose_time_has_come() -> None:
    async def scenario() -> list[str]:
        clock, woken = SystemClock(), []

        async def sleeper(name: str, seconds: float) -> None:
            await clock.sleep(seconds)
            woken.append(name)

        tasks = [asyncio.ensure_future(sleeper(f"{hours} h", hours * 3600.0)) for hours in (1, 2, 3)]
        await asyncio.sleep(0)
        before = clock.time()
        clock.advance(7200)
        assert 7200 <= clock.time() - before < 7210
        await asyncio.wait_for(asyncio.gather(*tasks[:2]), 30)
        await asyncio.sleep(0)
        assert not tasks[2].done()
        clock.advance(3600)
        await asyncio.wait_for(tasks[2], 30)
        return woken

    assert asyncio.run(scenario()) == ["1 h", "2 h", "3 h"]


def test_a_cancelled_sleeper_is_forgotten() -> None:
    async def scenario() -> None:
        clock = SystemClock()
        sleeping = asyncio.ensure_future(clock.sleep(3600))
        await asyncio.sleep(0)
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        clock.advance(7200)
        await asyncio.wait_for(clock.sleep(0.01), 30)

    asyncio.run(scenario())


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_time_does_not_go_back(seconds: float) -> None:
    with pytest.raises(ValueError, match="put back"):
        SystemClock().advance(seconds)

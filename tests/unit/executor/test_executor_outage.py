from __future__ import annotations

import asyncio
import logging
import time

import pytest

from airflow_provider_modal.executors import outage as outage_module
from airflow_provider_modal.executors.outage import Outage


def test_an_outage_is_told_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    async def outage() -> None:
        outage = Outage()
        outage.answered()
        for _ in range(100):
            outage.failed("tasks can't be handed to Modal")
        outage.answered()
        outage.answered()

    with caplog.at_level(logging.INFO, "airflow_provider_modal.executors.outage"):
        asyncio.run(outage())
    first, last = (record.getMessage() for record in caplog.records)
    assert "tasks can't be handed to Modal" in first
    assert "answers again" in last


@pytest.mark.parametrize("cause", ["answer", "stop"])
def test_a_pause_ends_early_for_a_cause(cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage_module, "LEAST_PART", 0.005)

    async def paused() -> float:
        outage, stop = Outage(), asyncio.Event()
        outage.failed("away")
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, outage.answered if cause == "answer" else stop.set)
        before = time.monotonic()
        await outage.pause(60, stop)
        return time.monotonic() - before

    seconds = asyncio.run(paused())
    assert seconds < 60
    if cause == "answer":
        # A call that fails alone must not be repeated as fast as others succeed.
        assert seconds >= 60 * 0.005


def test_a_pause_without_cause_lasts_its_time() -> None:
    async def paused() -> float:
        outage = Outage()
        outage.failed("away")
        before = time.monotonic()
        await outage.pause(0.2)
        return time.monotonic() - before

    assert asyncio.run(paused()) >= 0.19

"""Output of containers on disk: found again, bounded, and never waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from local_modal import logstore
from local_modal.logstore import KEPT_SECONDS, LogEntry, LogStore, Selection

NOW = 1_800_000_000.0


def entry(text: str, *, at: float = NOW, app: str = "ap-1", call: str = "", descriptor: int = 1) -> LogEntry:
    return LogEntry(0, at, app, "fu-1", "fu-1", call, "", "ta-1", descriptor, text)


def use(path: Path, scenario: Callable[[LogStore], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        store = LogStore(path / "logs.db", lambda: None, **options)
        try:
            return await scenario(store)
        finally:
            await store.close()

    return asyncio.run(run())


def texts(entries: list[LogEntry]) -> list[str]:
    return [entry.text for entry in entries]


def test_entries_are_found_by_what_they_belong_to_also_after_a_restart(tmp_path: Path) -> None:
    async def write(store: LogStore) -> None:
        for number in range(10):
            store.append(entry(f"line {number}\n", call=f"fc-{number % 2}", at=NOW + number))
        store.append(entry("of another\n", app="ap-2", descriptor=2))

    async def read(store: LogStore) -> None:
        by_call = await store.read(Selection(app_id="ap-1", call_id="fc-1"))
        assert texts(by_call) == [f"line {number}\n" for number in (1, 3, 5, 7, 9)]
        assert texts(await store.read(Selection(app_id="ap-1"), 2)) == ["line 0\n", "line 1\n"]
        assert texts(await store.read(Selection(app_id="ap-1"), 2, newest=True)) == ["line 8\n", "line 9\n"]
        assert texts(await store.read(Selection(after=by_call[0].number), 1)) == ["line 2\n"]
        assert texts(await store.read(Selection(text="ne 4"))) == ["line 4\n"]
        assert texts(await store.read(Selection(since=NOW + 3, until=NOW + 5))) == ["line 3\n", "line 4\n"]
        assert texts(await store.read(Selection(descriptor=2))) == ["of another\n"]
        store.append(entry("later\n"))
        newest = await store.read(Selection(), 1, newest=True)
        assert texts(newest) == ["later\n"] and newest[0].number == 12

    use(tmp_path, write)
    use(tmp_path, read)


def test_entries_are_counted_in_intervals(tmp_path: Path) -> None:
    async def scenario(store: LogStore) -> None:
        for seconds, descriptor in ((0, 1), (1, 1), (9, 2), (25, 1)):
            store.append(entry("x", at=NOW + seconds, descriptor=descriptor))
        counts = await store.count(Selection(), NOW, 10.0)
        assert counts == {0: {1: 2, 2: 1}, 2: {1: 1}}

    use(tmp_path, scenario)


def test_a_noisy_app_loses_its_own_oldest_output(tmp_path: Path) -> None:
    async def scenario(store: LogStore) -> None:
        store.append(entry("quiet", app="ap-quiet"))
        for number in range(300):
            store.append(entry(f"{number:010d}"))
            if number % 50 == 0:
                await store.read(Selection(), 1)
        kept = texts(await store.read(Selection(app_id="ap-1")))
        assert kept[-1] == f"{299:010d}" and len(kept) <= 100
        assert kept == [f"{number:010d}" for number in range(300 - len(kept), 300)]
        assert texts(await store.read(Selection(app_id="ap-quiet"))) == ["quiet"]

    use(tmp_path, scenario, app_characters=1000)


def test_old_output_is_removed(tmp_path: Path) -> None:
    async def scenario(store: LogStore) -> None:
        store.append(entry("old", at=NOW - KEPT_SECONDS - 1))
        store.append(entry("new"))
        await store.trim(NOW)
        assert texts(await store.read(Selection())) == ["new"]

    use(tmp_path, scenario)


def test_all_apps_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logstore, "ALL_CHARACTERS", 100)

    async def scenario(store: LogStore) -> None:
        for number in range(30):
            store.append(entry(f"{number:010d}", app=f"ap-{number}"))
        await store.trim(NOW)
        assert texts(await store.read(Selection())) == [f"{number:010d}" for number in range(20, 30)]

    use(tmp_path, scenario)


def test_what_comes_too_fast_is_dropped_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logstore, "PENDING_CHARACTERS", 100)

    async def scenario(store: LogStore) -> None:
        for _ in range(20):
            store.append(entry("ten chars."))
        found = await store.read(Selection())
        assert len(found) == 12 and "9 pieces of output were dropped" in found[-1].text

    use(tmp_path, scenario)

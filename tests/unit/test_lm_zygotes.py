"""The server's side of zygotes when these don't answer as they should."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from local_modal import zygotes
from local_modal.isolation import Interpreter
from local_modal.zygotes import ForkedProcess, ZygoteError, Zygotes

PYTHON = Interpreter(sys.executable, ())
SPEC: dict[str, Any] = {
    "mode": "shared",
    "cgroups": [],
    "cwd": "/",
    "foreign_path": [],
    "new_interpreter": False,
    "module": "keyword",
    "argv": [],
}
FAILS_ONCE = """
import errno, os, runpy
real, failures = os.fork, [OSError(errno.EAGAIN, "Resource temporarily unavailable")]
def fork():
    if failures:
        raise failures.pop()
    return real()
os.fork = fork
runpy.run_path({program!r}, run_name="__main__")
"""
Fork = Callable[[str], Awaitable[ForkedProcess]]


def run(story: Callable[[Zygotes, Fork], Awaitable[None]]) -> None:
    async def main() -> None:
        under_test = Zygotes("keyword")

        async def fork(task_id: str) -> ForkedProcess:
            with open(os.devnull, "w") as nowhere:
                output = (nowhere.fileno(), nowhere.fileno())
                return await under_test.fork(PYTHON, task_id, SPEC, {}, output)

        try:
            await story(under_test, fork)
        finally:
            await under_test.stop()

    asyncio.run(main())


def zygote_pids() -> list[int]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # that of a test before, which ends just now
            if any(part.endswith("zygote.py") for part in child.cmdline()):
                found.append(child.pid)
    return found


def test_a_zygote_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(under_test: Zygotes, fork: Fork) -> None:
        first = await fork("ta-1")
        assert await first.wait() == 0
        [pid] = zygote_pids()
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(zygotes, "FORK_SECONDS", 0.2)
        failed = await asyncio.gather(fork("ta-2"), fork("ta-3"), return_exceptions=True)
        assert [type(each) for each in failed] == [ZygoteError, ZygoteError]
        monkeypatch.setattr(zygotes, "FORK_SECONDS", 30)
        second, third = await asyncio.gather(fork("ta-4"), fork("ta-5"))
        assert [await second.wait(), await third.wait()] == [0, 0]
        [successor] = zygote_pids()
        assert successor != pid

    run(story)
    assert zygote_pids() == []


def test_a_fork_that_fails_ends_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "failing_zygote.py"
    program.write_text(FAILS_ONCE.format(program=str(zygotes.PROGRAM)))
    monkeypatch.setattr(zygotes, "PROGRAM", program)

    async def story(under_test: Zygotes, fork: Fork) -> None:
        with pytest.raises(ZygoteError, match="temporarily unavailable"):
            await fork("ta-1")
        [pid] = zygote_pids()
        assert await (await fork("ta-2")).wait() == 0
        assert zygote_pids() == [pid]

    run(story)


def test_a_container_that_nobody_waits_for_any_more_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(under_test: Zygotes, fork: Fork) -> None:
        await (await fork("ta-1")).wait()
        [pid] = zygote_pids()
        os.kill(pid, signal.SIGSTOP)
        asked = asyncio.ensure_future(fork("ta-2"))
        zygote = await under_test.ensure(PYTHON)
        while zygote.forks < 2:
            await asyncio.sleep(0.001)
        asked.cancel()
        await asyncio.wait([asked])
        os.kill(pid, signal.SIGCONT)
        await asyncio.wait_for(zygote.unused(), 30)
        assert await (await fork("ta-3")).wait() == 0

    run(story)

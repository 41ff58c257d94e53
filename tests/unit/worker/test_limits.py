"""How does a child end that takes too long, or that nobody wants any more?"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_modal.container.zygote import Zygote
from airflow_provider_modal.worker import limits, memory
from local_modal.testing import wait_until

TARGETS = str(Path(__file__).parent.parent)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    sys.path.insert(0, TARGETS)
    try:
        zygote = Zygote.start()
    finally:
        sys.path.remove(TARGETS)
    yield zygote
    zygote.stop()


def test_child_within_its_limit(zygote: Zygote) -> None:
    child = zygote.spawn("zygote_targets:echo", {"value": 1})
    ending = limits.await_end(child, 30, limits.Cancellation())
    assert (ending.stopped, ending.killed, ending.outcome.result) == (None, False, 1)


@pytest.mark.parametrize(("timeout", "requested", "why"), [(0.1, False, "timeout"), (60, True, "cancelled")])
def test_child_is_told_to_stop(zygote: Zygote, timeout: float, requested: bool, why: str) -> None:
    told: list[str] = []
    child = zygote.spawn("zygote_targets:sleep", {})
    ending = limits.await_end(child, timeout, limits.Cancellation(requested), on_stop=told.append)
    assert (ending.stopped, ending.killed, ending.outcome.signal) == (why, False, signal.SIGTERM)
    assert told == [why]


def test_grace_is_shorter_in_a_container_that_is_taken_away(
    zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PREEMPTION_GRACE", 0.2)
    ready = tmp_path / "ready"
    child = zygote.spawn("zygote_targets:ignore_sigterm", {"ready": str(ready)})
    wait_until(ready.exists, 30, "it ignores SIGTERM")
    cancelled = limits.Cancellation(requested=True)

    def take_away(stop: limits.Stop) -> None:
        assert stop == "cancelled"
        cancelled.preempted = True

    started = time.monotonic()
    assert limits.await_end(child, 60, cancelled, on_stop=take_away).killed
    assert time.monotonic() - started < limits.GRACE


@pytest.mark.parametrize(("timeout", "requested", "why"), [(0.1, False, "timeout"), (60, True, "cancelled")])
def test_child_that_does_not_stop_is_killed(
    zygote: Zygote, tmp_path: Path, timeout: float, requested: bool, why: str
) -> None:
    told: list[object] = []
    ready = tmp_path / "ready"
    child = zygote.spawn("zygote_targets:ignore_sigterm", {"ready": str(ready)})
    wait_until(ready.exists, 30, "it ignores SIGTERM")
    cancelled = limits.Cancellation(requested)
    ending = limits.await_end(child, timeout, cancelled, grace=0.2, on_stop=told.append, on_kill=told.append)
    assert (ending.stopped, ending.killed, ending.outcome.signal) == (why, True, signal.SIGKILL)
    assert told == [why, 0.2]


def test_cancellation_is_noted_not_raised() -> None:
    def modals(_signum: int, _frame: object) -> None:
        raise AssertionError("the task's work must not be interrupted")

    former = signal.signal(signal.SIGUSR1, modals)
    try:
        with limits.cancellation() as cancelled:
            assert not cancelled.requested
            os.kill(os.getpid(), signal.SIGUSR1)
            ends = time.monotonic() + 30
            while not cancelled.requested and time.monotonic() < ends:
                time.sleep(0.01)
            assert cancelled.requested
        assert signal.getsignal(signal.SIGUSR1) is modals
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_preemption_is_noted_once_something_runs() -> None:
    former = signal.getsignal(signal.SIGINT)
    with limits.cancellation() as cancelled:
        signal.raise_signal(signal.SIGINT)
        assert cancelled.stop == "preempted"
        cancelled.interruptible = True
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is former


def test_cancellation_off_the_main_thread_is_harmless() -> None:
    found: list[limits.Cancellation] = []

    def work() -> None:
        with limits.cancellation() as cancelled:
            found.append(cancelled)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [limits.Cancellation(False)]


def test_memory_counter(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    assert memory.oom_kills((events,)) is None
    events.write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert memory.oom_kills((tmp_path / "absent", events)) == 2
    assert memory.rose(1, 2) and not memory.rose(2, 2) and not memory.rose(None, 2)


V1 = ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file")
V2 = ("memory.current", "memory.max", "inactive_file")


def control_group(folder: Path, files: tuple[str, str, str], limit: str) -> None:
    """A group that uses 300 MiB, of which 100 are cache."""
    usage, most, cache = files
    folder.mkdir(parents=True, exist_ok=True)
    (folder / usage).write_text(f"{300 * 2**20}\n")
    (folder / most).write_text(f"{limit}\n")
    (folder / "memory.stat").write_text(f"rss 1\n{cache} {100 * 2**20}\n")


@pytest.mark.parametrize(
    ("own", "folder", "files"),
    [
        ("0::/a/b\n", "a/b", V2),
        ("0::/\n", ".", V2),
        ("3:cpu:/x\n4:memory:/a\n0::/other\n", "memory/a", V1),
    ],
)
@pytest.mark.parametrize(
    ("limit", "used"), [(str(512 * 2**20), 200), ("max", None), ("9223372036854771712", None)]
)
def test_memory_in_use_is_that_of_a_group_with_a_limit_without_cache(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: str,
    folder: str,
    files: tuple[str, str, str],
    limit: str,
    used: int | None,
) -> None:
    control_group(tmp_path / "cgroup" / folder, files, limit)
    (tmp_path / "own").write_text(own)
    group = memory._control_group(tmp_path / "own", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_control_group", lambda: group)
    assert memory.used() == used


def test_memory_that_cannot_be_measured_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").write_text("0::/\n")
    assert memory._control_group(tmp_path / "own", tmp_path) is None
    monkeypatch.setattr(memory, "_control_group", lambda: None)
    assert memory.used() is None


def test_a_container_that_was_near_its_limit_was_lost_for_memory() -> None:
    told = memory.reason_of_lost("ta-1", "default", 1000, 801)
    assert told is not None and told.startswith("out of memory")
    assert "801 MiB of its limit of 1000" in told and "{'memory': 2000}" in told
    assert memory.reason_of_lost("ta-1", "default", 1000, 799) is None
    assert memory.reason_of_lost("ta-1", "default", 1000, 5000) is None
    assert memory.reason_of_lost("ta-1", "default", None, 799) is None
    assert memory.reason_of_lost("ta-1", "default", 1000, None) is None


def test_memory_reason_names_limit_and_setting() -> None:
    reason = memory.reason("large", 2048)
    assert "2048 MiB" in reason and "workers.large.memory" in reason

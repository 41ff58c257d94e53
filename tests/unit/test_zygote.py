"""Does a zygote give each request a fresh, warm process, and does nothing outlive anything?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from airflow_provider_modal.container import zygote as zygote_module
from airflow_provider_modal.container.zygote import Zygote, ZygoteError
from local_modal.testing import wait_until
from tests.support.processes import is_running

HERE = str(Path(__file__).parent)
T = "zygote_targets"


@pytest.fixture(scope="module", autouse=True)
def _targets_importable() -> Iterator[None]:
    # The zygote takes over sys.path as it is when it starts.
    sys.path.insert(0, HERE)
    yield
    sys.path.remove(HERE)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote.start(f"{T}:warm")
    zygote.ready(30)
    yield zygote
    zygote.stop()
    assert not is_running(zygote.pid)


@pytest.fixture
def own_zygote() -> Iterator[Zygote]:
    zygote = Zygote.start(f"{T}:warm")
    zygote.ready(30)
    yield zygote
    zygote.stop()


def test_child_is_a_warm_fresh_session_leader(zygote: Zygote) -> None:
    child = zygote.spawn(f"{T}:facts", {"variable": "SOME_VARIABLE"}, {"SOME_VARIABLE": "value"})
    outcome = child.wait(30)
    assert outcome is not None and outcome.error is None and outcome.exit_code == 0
    facts = outcome.result
    assert facts["pid"] == facts["session"] == child.pid
    assert facts["parent"] == zygote.pid
    assert facts["warmed"] and facts["threads"] == 1 and not facts["modal"] and facts["sigterm"]
    assert facts["variable"] == "value"
    # Standard streams, its own socket and the folder that was being listed: nothing of the zygote's.
    assert len(facts["fds"]) == 5
    again = zygote.spawn(f"{T}:facts", {"variable": "SOME_VARIABLE"}).wait(30)
    assert again is not None and again.result["variable"] is None


def test_large_argument_and_result(zygote: Zygote) -> None:
    text = "ü" * 5_000_000
    outcome = zygote.spawn(f"{T}:echo", {"value": text}).wait(30)
    assert outcome is not None and outcome.result == text


def test_result_too_large_is_an_error(zygote: Zygote) -> None:
    outcome = zygote.spawn(f"{T}:big", {"size": 65 * 1024 * 1024}).wait(30)
    assert outcome is not None and outcome.error is not None
    assert "its result can't travel" in outcome.error and "longer than the limit" in outcome.error


def test_result_that_is_not_json_is_an_error(zygote: Zygote) -> None:
    outcome = zygote.spawn(f"{T}:unjsonable", {}).wait(30)
    assert outcome is not None and "not JSON serializable" in str(outcome.error)


@pytest.mark.parametrize(
    ("target", "error", "kind", "exit_code"),
    [
        ("raise_plain", "ValueError: wrong", None, 1),
        ("raise_ours", "no such run", "not_found", 0),
        ("no_such_function", "AttributeError", None, 1),
    ],
)
def test_errors_of_a_target(
    zygote: Zygote, target: str, error: str, kind: str | None, exit_code: int
) -> None:
    outcome = zygote.spawn(f"{T}:{target}", {}).wait(30)
    assert outcome is not None and outcome.error is not None
    assert outcome.error.startswith(error) and outcome.error_kind == kind
    assert outcome.exit_code == exit_code


def test_exit_and_signal_are_told(zygote: Zygote) -> None:
    outcome = zygote.spawn(f"{T}:exit_with", {"code": 3}).wait(30)
    assert outcome is not None and outcome.exit_code == 3 and "code 3" in str(outcome.error)
    outcome = zygote.spawn(f"{T}:die", {"signum": signal.SIGKILL}).wait(30)
    assert outcome is not None and outcome.signal == signal.SIGKILL and "SIGKILL" in str(outcome.error)


def test_wait_returns_none_and_send_signal_reaches_the_child(zygote: Zygote) -> None:
    child = zygote.spawn(f"{T}:sleep", {})
    assert child.wait(0.05) is None
    child.send_signal(signal.SIGTERM)
    outcome = child.wait(30)
    assert outcome is not None and outcome.signal == signal.SIGTERM
    child.send_signal(signal.SIGTERM)
    child.kill()


def test_a_signal_that_comes_with_the_fork_ends_the_child(zygote: Zygote) -> None:
    for _ in range(30):
        child = zygote.spawn(f"{T}:sleep", {})
        child.send_signal(signal.SIGTERM)
        outcome = child.wait(30)
        assert outcome is not None and outcome.signal == signal.SIGTERM


def test_many_children_at_once(zygote: Zygote, tmp_path: Path) -> None:
    """Each ends only when all are there."""
    children = [zygote.spawn(f"{T}:meet", {"folder": str(tmp_path), "count": 20}) for _ in range(20)]
    outcomes = [child.wait(30) for child in children]
    assert all(outcome is not None and outcome.error is None for outcome in outcomes)
    assert len({child.pid for child in children}) == 20


def test_kill_ends_other_process_groups_too(zygote: Zygote, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = zygote.spawn(f"{T}:leave_behind_and_wait", {"path": str(pids)})
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    child.kill()
    outcome = child.wait(30)
    assert outcome is not None and outcome.signal == signal.SIGKILL
    assert not any(is_running(int(pid)) for pid in pids.read_text().split())


def test_what_a_child_leaves_behind_ends_with_it(zygote: Zygote, tmp_path: Path) -> None:
    outcome = zygote.spawn(f"{T}:leave_behind", {"path": str(tmp_path / "pids")}).wait(30)
    assert outcome is not None and len(outcome.result) == 2
    assert not any(is_running(pid) for pid in outcome.result)


def test_orphans_are_reaped_by_the_zygote(zygote: Zygote, tmp_path: Path) -> None:
    outcome = zygote.spawn(f"{T}:orphan", {"path": str(tmp_path)}).wait(30)
    assert outcome is not None and outcome.error is None
    wait_until(lambda: not psutil.Process(zygote.pid).children())


def test_a_daemon_ends_with_the_last_child(zygote: Zygote) -> None:
    other = zygote.spawn(f"{T}:sleep", {})
    outcome = zygote.spawn(f"{T}:daemon", {}).wait(30)
    assert outcome is not None
    left = psutil.Process(outcome.result)
    # It may be the other child's.
    wait_until(lambda: left.ppid() == zygote.pid)
    other.kill()
    assert other.wait(30) is not None
    assert not is_running(left.pid)
    outcome = zygote.spawn(f"{T}:daemon", {}).wait(30)
    assert outcome is not None and not is_running(outcome.result)


def test_a_fork_that_comes_too_late_ends(own_zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = psutil.Process(own_zygote.pid)
    frozen.suspend()
    monkeypatch.setattr(zygote_module, "SPAWN_TIMEOUT", 0.2)
    try:
        with pytest.raises(ZygoteError, match="did not fork within"):
            own_zygote.spawn(f"{T}:sleep", {})
    finally:
        frozen.resume()
    monkeypatch.undo()
    # Forked in the order of the requests: by now the late one is there, or has been.
    outcome = own_zygote.spawn(f"{T}:echo", {"value": 1}).wait(30)
    assert outcome is not None and outcome.result == 1
    wait_until(lambda: not frozen.children())


def test_supervised_process_dies_with_a_killed_child(zygote: Zygote, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = zygote.spawn(f"{T}:leave_behind_and_wait", {"path": str(pids)})
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    forked = int(pids.read_text().split()[1])
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: not is_running(forked))


def test_zygote_killed_ends_children_and_is_started_again(own_zygote: Zygote, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = own_zygote.spawn(f"{T}:leave_behind_and_wait", {"path": str(pids)})
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    first = own_zygote.pid
    os.kill(first, signal.SIGKILL)
    outcome = child.wait(30)
    assert outcome is not None and "the zygote ended (signal 9 (SIGKILL))" in str(outcome.error)
    assert not is_running(child.pid)
    assert not any(is_running(int(pid)) for pid in pids.read_text().split())
    again = own_zygote.spawn(f"{T}:facts", {}).wait(30)
    assert again is not None and again.result["parent"] == own_zygote.pid != first


def test_failing_warm_up_is_told() -> None:
    zygote = Zygote.start(f"{T}:broken_warm_up")
    with pytest.raises(ZygoteError, match="could not start: RuntimeError: no such plugin"):
        zygote.ready(30)
    with pytest.raises(ZygoteError, match="no such plugin"):
        zygote.spawn(f"{T}:echo", {"value": 1})


@pytest.mark.parametrize("asked_at_once", [True, False])
def test_failing_warm_up_is_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_at_once: bool
) -> None:
    monkeypatch.setenv("ONCE", str(tmp_path / "once"))
    zygote = Zygote.start(f"{T}:warm_up_broken_once")
    first = zygote._running
    if not asked_at_once:
        assert first.gone.wait(30)
    with pytest.raises(ZygoteError, match="no such plugin"):
        zygote.ready(30)
    assert first.gone.wait(30)
    zygote.ready(30)
    zygote.stop()


def test_threads_in_the_zygote_are_refused() -> None:
    zygote = Zygote.start(f"{T}:threaded_warm_up")
    with pytest.raises(ZygoteError, match=r"2 threads and must not fork.*a-plugin"):
        zygote.ready(30)


def test_entry_killed_ends_zygote_and_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    entry = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; sys.path.insert(0, sys.argv[1])\n"
            "from airflow_provider_modal.container.zygote import Zygote\n"
            f"zygote = Zygote.start('{T}:warm')\n"
            f"child = zygote.spawn('{T}:leave_behind_and_wait', {{'path': sys.argv[2]}})\n"
            "print(zygote.pid, child.pid, flush=True)\n"
            "time.sleep(60)\n",
            HERE,
            str(pids),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert entry.stdout is not None
    zygote, child = map(int, entry.stdout.readline().split())
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    everybody = [zygote, child, *map(int, pids.read_text().split())]
    assert all(is_running(pid) for pid in everybody)
    entry.kill()
    entry.wait()
    wait_until(lambda: not any(is_running(pid) for pid in everybody))

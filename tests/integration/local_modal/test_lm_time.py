"""Time that passes because a test says so: schedules, expiry and scaledown without waiting."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from local_modal.testing import ControlError, LocalModal, wait_until
from tests.integration.local_modal.conftest import client, deploy, start_client

pytestmark = pytest.mark.one_sdk

DAY = 24 * 3600.0


def test_a_week_in_a_moment(fresh_local_modal: LocalModal) -> None:
    """What should expire does, schedules fire once, whoever is alive lives on, a restart keeps the time."""
    server = fresh_local_modal
    deploy(server, "scheduled")
    fill = (
        "modal.Dict.from_name('d', create_if_missing=True)['k'] = 'v'\n"
        "modal.Queue.from_name('q', create_if_missing=True).put('item')\n"
        "modal.Queue.from_name('weekly', create_if_missing=True).hydrate()\n"
        "result = f('tick', 'scheduled').spawn().get()"
    )
    look = (
        "result = [modal.Dict.from_name('d').get('k'), modal.Queue.from_name('q').len(),\n"
        "    modal.Queue.from_name('weekly').len()]"
    )
    client(server, fill)
    running = start_client(
        server,
        "with modal.App('ephemeral').run(), modal.Dict.ephemeral() as entries:\n"
        "    print('RUNNING', flush=True)\n"
        "    modal.Queue.from_name('go', create_if_missing=True).get()\n"
        "    entries['k'] = result = 'alive'",
    )
    assert running.stdout is not None and running.stdout.readline() == "RUNNING\n"
    server.advance(DAY / 2)
    assert client(server, look)[:2] == ["v", 1]
    server.advance(DAY / 2)
    assert client(server, look)[:2] == ["v", 0]
    client(server, "result = modal.Queue.from_name('go').put('on')")
    output, errors = running.communicate(timeout=60)
    assert '"alive"' in output, errors
    server.advance(8 * DAY)  # at least one Monday
    wait_until(lambda: client(server, look)[2] >= 1)
    assert client(server, look)[:2] == [None, 0]
    later = server.control("advance", seconds=0)["time"]
    server.kill()
    server.start()
    assert later <= server.control("advance", seconds=0)["time"] < later + 600


@pytest.fixture(scope="module")
def timed_server() -> Iterator[LocalModal]:
    """Not one that others use: its time has gone ahead."""
    with LocalModal(arguments=["--stop-grace", "1"]) as server:
        deploy(server, "basics")
        yield server


def test_scaledown_and_input_timeouts_see_the_time_pass(timed_server: LocalModal) -> None:
    code = "f('square').remote(1)\nresult = f('gated').spawn('never').object_id"
    call = client(timed_server, code)
    [task] = wait_until(lambda: [t for t in timed_server.tasks("gated") if t["running_inputs"]])
    assert timed_server.tasks("square")
    timed_server.advance(DAY)
    wait_until(lambda: not timed_server.tasks("square"))
    code = (
        "try:\n    result = modal.FunctionCall.from_id(call).get()\n"
        "except modal.exception.FunctionTimeoutError as error:\n    result = 'timed out'"
    )
    assert client(timed_server, code, call=call) == "timed out"
    wait_until(lambda: task["task_id"] not in [t["task_id"] for t in timed_server.tasks()])


def test_the_clock_is_advanced_from_the_command_line(timed_server: LocalModal) -> None:
    before = timed_server.control("advance", seconds=0)["time"]
    command = [sys.executable, "-m", "local_modal", "fault", "advance", "--seconds", "100"]
    state = ["--state-dir", str(timed_server.state_dir)]
    subprocess.run([*command, *state], check=True, capture_output=True, timeout=60)
    assert timed_server.control("advance", seconds=0)["time"] >= before + 100
    with pytest.raises(ControlError, match="put back"):
        timed_server.advance(-1)

"""Deployments, ephemeral apps, schedules and logs, through the stock SDK and its command line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import APPS, client, deploy, modal, modal_command, start_client

CALL_VERSION = "result = f('version', 'versions').remote({seconds})"

NOT_FOUND = """
try:
    f('{function}', '{app}').remote()
    result = False
except modal.exception.NotFoundError:
    result = True
"""


def version(server: LocalModal, seconds: float = 0.0) -> list[str]:
    found: list[str] = client(server, CALL_VERSION.format(seconds=seconds))
    return found


def test_a_rolling_redeploy_lets_running_inputs_end(isolated_server: LocalModal) -> None:
    deploy(isolated_server, "versions", VERSION="one")
    assert version(isolated_server)[0] == "one"
    running = start_client(isolated_server, CALL_VERSION.format(seconds=2))
    busy = wait_until(
        lambda: [task for task in isolated_server.tasks("version") if task["running_inputs"]], 20, "it runs"
    )
    deploy(isolated_server, "versions", VERSION="two")
    assert version(isolated_server)[0] == "two"
    output, errors = running.communicate(timeout=30)
    assert '"one"' in output, errors
    # The old container, idle now, doesn't wait for its scaledown window.
    wait_until(lambda: busy[0]["task_id"] not in [t["task_id"] for t in isolated_server.tasks()], 5)


def test_a_recreate_redeploy_leaves_no_old_container(isolated_server: LocalModal) -> None:
    deploy(isolated_server, "versions", VERSION="three")
    task_id = version(isolated_server)[1]
    modal(
        isolated_server,
        *("deploy", str(APPS / "versions.py"), "--strategy", "recreate"),
        VERSION="four",
    )
    assert task_id not in [task["task_id"] for task in isolated_server.tasks()]
    assert version(isolated_server)[0] == "four"


def test_what_waits_at_a_redeploy_runs_in_the_new_one(isolated_server: LocalModal) -> None:
    name = "limited"
    deploy(isolated_server, "limited", VERSION="one")
    code = (
        "calls = [f('version', 'limited').spawn(s) for s in (1.5, 0)]\nresult = [c.object_id for c in calls]"
    )
    first, second = client(isolated_server, code)
    wait_until(
        lambda: [t for t in isolated_server.tasks("version") if t["app_name"] == name and t["running_inputs"]]
    )
    deploy(isolated_server, "limited", VERSION="two")
    code = "result = [modal.FunctionCall.from_id(c).get() for c in calls]"
    assert client(isolated_server, code, calls=[first, second]) == ["one", "two"]


def test_an_ephemeral_app_ends_with_its_client(isolated_server: LocalModal) -> None:
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(APPS / "ephemeral.py")],
        env=isolated_server.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "result 42" in done.stdout and "working on 41" in done.stdout
    assert "Logs may have been" not in done.stderr and time.monotonic() - begin < 15
    wait_until(lambda: not [t for t in isolated_server.tasks() if t["app_name"] == "ephemeral"], 10)


def test_modal_run_prints_the_containers_output(isolated_server: LocalModal) -> None:
    output = modal(isolated_server, "run", str(APPS / "ephemeral.py"), "--count", "2")
    assert output.count("working on") == 2 and output.count("result") == 2


def test_an_import_failure_is_the_callers_error(isolated_server: LocalModal) -> None:
    deploy(isolated_server, "broken")
    result = client(
        isolated_server,
        "begin = time.time()\n"
        "try:\n    f('unreachable', 'broken').remote()\n"
        "except Exception as error:\n    result = [type(error).__name__, str(error), time.time() - begin]",
    )
    assert result[0] == "ModuleNotFoundError" and "no_such_module" in result[1]


def test_methods_of_classes_keep_their_names_and_parameters_their_pools(isolated_server: LocalModal) -> None:
    deploy(isolated_server, "classes")
    result = client(
        isolated_server,
        "counter = modal.Cls.from_name('classes', 'Counter')\n"
        "five = counter(start=5)\n"
        "result = [five.add.remote(1), five.add.remote(1), five.name.remote(), counter().add.remote(1)]",
    )
    assert result == [6, 7, "counter from 5", 1]


def test_a_start_that_takes_too_long_is_a_timeout(isolated_server: LocalModal) -> None:
    deploy(isolated_server, "slow_start")
    result = client(
        isolated_server,
        "try:\n    f('late', 'slow-start').remote()\n"
        "except modal.exception.FunctionTimeoutError as error:\n    result = str(error)",
    )
    assert "startup of late took longer than 1 s" in result
    modal(isolated_server, "app", "stop", "slow-start", "--yes")


def test_an_interpreter_stands_in_for_images_that_match() -> None:
    interpreter = Path(os.environ.get("LOCAL_MODAL_PYTHON", sys.executable))
    other = interpreter.with_name("python3")
    with LocalModal(arguments=["--image-python", f"example/other:1.*={other}"]) as server:
        deploy(server, "images")
        usual, (stand_in, cwd) = client(
            server, "result = [f('usual', 'images').remote(), f('other', 'images').remote()]"
        )
        assert (usual, stand_in) == (str(interpreter), str(other)) and usual != stand_in
        assert server.mode != "isolated" or cwd == "/nowhere/on/the/host"


def test_stopping_an_app_ends_its_containers_and_calls(isolated_server: LocalModal) -> None:
    deploy(isolated_server, "versions", VERSION="five")
    waiting = start_client(
        isolated_server,
        "call = f('version', 'versions').spawn(50)\n"
        "try:\n    call.get(); result = 'finished'\n"
        "except modal.exception.RemoteError as error:\n    result = str(error)",
    )
    wait_until(lambda: [t for t in isolated_server.tasks("version") if t["running_inputs"]], 20)
    modal(isolated_server, "app", "stop", "versions", "--yes")
    output, errors = waiting.communicate(timeout=20)
    assert "was stopped" in output, errors
    wait_until(lambda: not [t for t in isolated_server.tasks() if t["app_name"] == "versions"], 10)
    assert client(isolated_server, NOT_FOUND.format(function="version", app="versions"))
    assert "stopped" in modal(isolated_server, "app", "list")


def test_schedules_fire_while_their_app_is_deployed(isolated_server: LocalModal) -> None:
    deploy(isolated_server, "scheduled")
    code = (
        "q = modal.Queue.from_name('ticks', create_if_missing=True)\n"
        "q.get(timeout=60)\n"  # the first firings wait for the container together
        "time.sleep(0.5)\n"
        "q.clear()\n"
        "result = [q.get(timeout=20) for _ in range(3)]"
    )
    fired = client(isolated_server, code)
    assert 1.0 < fired[2] - fired[0] < 12.0
    isolated_server.control("fire", app_name="scheduled", function_name="weekly")
    code = "result = modal.Queue.from_name('weekly', create_if_missing=True).get(timeout=20)"
    assert client(isolated_server, code) == "fired"
    modal(isolated_server, "app", "stop", "scheduled", "--yes")
    code = (
        "q = modal.Queue.from_name('ticks', create_if_missing=True)\n"
        "q.clear()\n"
        "time.sleep(1.5)\n"
        "result = q.len()"
    )
    assert client(isolated_server, code) == 0


def test_logs_belong_to_their_call(isolated_server: LocalModal) -> None:
    marker = uuid.uuid4().hex[:8]
    result = client(
        isolated_server,
        "calls = [f('talk').spawn(n, 3) for n in (2, 3)]\n"
        "tasks = [call.get() for call in calls]\n"
        "entries = list(calls[1].logs.tail())\n"
        "result = [''.join(str(getattr(e, 'data', e)) for e in entries), tasks]",
        marker=marker,
    )
    text = result[0]
    assert text.count("xxx") == 3 and "to stderr" in text


def test_app_logs_of_the_command_line(isolated_server: LocalModal) -> None:
    client(isolated_server, "result = f('talk').remote(2, 5)")
    assert "000001xxxxx" in modal(isolated_server, "app", "logs", "basics")


def test_what_is_not_supported_is_refused_at_deploy(isolated_server: LocalModal) -> None:
    code, output, errors = modal_command(isolated_server, "deploy", str(APPS / "unsupported.py"))
    assert code == 1
    assert "block_network is not supported by the local Modal server" in output + errors
    assert client(isolated_server, NOT_FOUND.format(function="offline", app="unsupported"))


@pytest.mark.parametrize("command", [["app", "list"], ["container", "list"], ["environment", "list"]])
def test_list_commands_work(isolated_server: LocalModal, command: list[str]) -> None:
    modal(isolated_server, *command, "--json")

"""Deployments, ephemeral apps, schedules and logs, through the stock SDK and its command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import (
    APPS,
    client,
    deploy,
    interrupt,
    modal,
    modal_command,
    start_client,
)

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
        lambda: [task for task in isolated_server.tasks("version") if task["running_inputs"]], 30, "it runs"
    )
    deploy(isolated_server, "versions", VERSION="two")
    assert version(isolated_server)[0] == "two"
    output, errors = running.communicate(timeout=60)
    assert '"one"' in output, errors
    # The old container, idle now, doesn't wait for its scaledown window.
    wait_until(lambda: busy[0]["task_id"] not in [t["task_id"] for t in isolated_server.tasks()])


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
        "calls = [f('version', 'limited').spawn(until) for until in ('redeployed', '')]\n"
        "result = [call.object_id for call in calls]"
    )
    first, second = client(isolated_server, code)
    wait_until(
        lambda: [t for t in isolated_server.tasks("version") if t["app_name"] == name and t["running_inputs"]]
    )
    deploy(isolated_server, "limited", VERSION="two")
    code = (
        "modal.Dict.from_name('limited-notes')['redeployed'] = True\n"
        "result = [modal.FunctionCall.from_id(call).get() for call in calls]"
    )
    assert client(isolated_server, code, calls=[first, second]) == ["one", "two"]


def test_an_ephemeral_app_ends_with_its_client(isolated_server: LocalModal) -> None:
    done = subprocess.run(
        [sys.executable, str(APPS / "ephemeral.py")],
        env=isolated_server.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "result 42" in done.stdout and "working on 41" in done.stdout
    assert "Logs may have been" not in done.stderr
    wait_until(lambda: not [t for t in isolated_server.tasks() if t["app_name"] == "ephemeral"])


def test_modal_run_prints_the_containers_output(isolated_server: LocalModal) -> None:
    output = modal(isolated_server, "run", str(APPS / "ephemeral.py"), "--count", "2")
    assert output.count("working on") == 2 and output.count("result") == 2


def test_an_unchanged_deployment_changes_nothing_and_a_rollover_replaces_containers(
    isolated_server: LocalModal,
) -> None:
    """`modal deploy` with nothing new leaves containers and history alone; `modal app rollover` doesn't."""
    deploy(isolated_server, "limited", VERSION="same")
    code = "result = f('version', 'limited').remote()"
    assert client(isolated_server, code) == "same"

    def containers() -> list[str]:
        return [t["task_id"] for t in isolated_server.tasks("version") if t["app_name"] == "limited"]

    # Those of former deployments may still be on their way out.
    wait_until(lambda: len(containers()) == 1)
    [before] = containers()
    versions = json.loads(modal(isolated_server, "app", "history", "limited", "--json"))
    assert "no changes detected" in deploy(isolated_server, "limited", VERSION="same")
    assert json.loads(modal(isolated_server, "app", "history", "limited", "--json")) == versions
    assert client(isolated_server, code) == "same"
    assert before in containers()
    modal(isolated_server, "app", "rollover", "limited")
    wait_until(lambda: before not in containers())
    assert client(isolated_server, code) == "same"
    assert len(json.loads(modal(isolated_server, "app", "history", "limited", "--json"))) == len(versions) + 1


def test_settings_of_the_autoscaler_are_changed_until_the_next_deployment(
    isolated_server: LocalModal,
) -> None:
    deploy(isolated_server, "limited", VERSION="first")

    def containers() -> int:
        return len([t for t in isolated_server.tasks("version") if t["app_name"] == "limited"])

    update = "f('version', 'limited').update_autoscaler({})\nresult = True"
    client(isolated_server, update.format("min_containers=2, max_containers=2"))
    wait_until(lambda: containers() == 2, 30, "two are kept warm")
    client(isolated_server, update.format("min_containers=0, scaledown_window=2"))
    wait_until(lambda: containers() == 0, 30, "none is kept any more")
    client(isolated_server, update.format("min_containers=2"))
    wait_until(lambda: containers() == 2)
    deploy(isolated_server, "limited", VERSION="first")  # the same, but it takes back what was changed
    wait_until(lambda: containers() == 0, 30, "the decorator's settings are back")
    # A variant has settings of its own.
    variant = "f('version', 'limited').with_options(timeout=77)"
    client(isolated_server, f"{variant}.update_autoscaler(min_containers=1)\nresult = True")
    wait_until(lambda: containers() == 1)
    update = "base.update_autoscaler(scaledown_window=2); base.remote(); variant.hydrate()\n"
    kept = client(
        isolated_server,
        f"base, variant = f('version', 'limited'), {variant}\n{update}result = variant.object_id",
    )

    def live() -> set[str]:
        return {t["function_id"] for t in isolated_server.tasks("version") if t["app_name"] == "limited"}

    wait_until(lambda: live() == {kept}, 30, "the function itself keeps no container")


def test_modal_serve_puts_each_saved_version_in_force(isolated_server: LocalModal, tmp_path: Path) -> None:
    file = tmp_path / "served.py"
    text = (
        "import modal\n"
        "app = modal.App('served')\n"
        "print('served version one')\n"
        "@app.function(min_containers=1)\n"
        "def work(): pass\n"
    )
    file.write_text(text)
    said = tmp_path / "said"
    with (
        said.open("w") as output,
        subprocess.Popen(
            [sys.executable, "-m", "modal", "serve", str(file)],
            env=isolated_server.env | {"PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        ) as serving,
    ):
        try:
            (one,) = wait_until(lambda: [t for t in isolated_server.tasks() if t["app_name"] == "served"], 60)
            wait_until(lambda: isolated_server.tasks("work")[0]["ready"], 60)
            wait_until(lambda: "Watching" in said.read_text(), 60)
            again, pause = 0.0, 10.0

            def replaced() -> bool:
                """a container of the new version"""
                nonlocal again, pause
                # Again, as the first time may be before the watch begins; each time ends what the one before
                # has begun, so that a slow machine needs more and more time between them.
                if "version two" not in said.read_text() and time.monotonic() > again:
                    pause *= 2
                    again = time.monotonic() + pause
                    file.write_text(text.replace("one", "two"))
                others = [t for t in isolated_server.tasks("work") if t["task_id"] != one["task_id"]]
                return any(task["ready"] for task in others)

            wait_until(replaced, 240)
            wait_until(lambda: one["task_id"] not in [t["task_id"] for t in isolated_server.tasks()])
        finally:
            interrupt(serving)
    wait_until(lambda: not [t for t in isolated_server.tasks() if t["app_name"] == "served"])


def test_a_detached_run_goes_on_without_its_client_and_ends_with_its_last_call(
    isolated_server: LocalModal,
) -> None:
    command = [sys.executable, "-m", "modal", "run", "--detach", f"{APPS / 'ephemeral.py'}::until_told"]
    with subprocess.Popen(command, env=isolated_server.env, stdout=subprocess.PIPE, text=True) as detached:
        wait_until(lambda: [t for t in isolated_server.tasks("until_told") if t["running_inputs"]])
        detached.send_signal(signal.SIGINT)
        assert "will keep running" in detached.communicate(timeout=60)[0]
    assert [t for t in isolated_server.tasks("until_told") if t["running_inputs"]]
    client(isolated_server, "result = modal.Queue.from_name('told', create_if_missing=True).put('end')")
    wait_until(lambda: not isolated_server.tasks("until_told"), 30, "the app has ended with its call")


def test_an_import_failure_is_the_callers_error_in_an_ephemeral_app(isolated_server: LocalModal) -> None:
    code, output, errors = modal_command(isolated_server, "run", f"{APPS / 'broken.py'}::unreachable")
    assert code == 1 and "No module named 'no_such_module'" in output + errors


def test_a_deployed_app_that_cant_be_imported_is_tried_for_ever(isolated_server: LocalModal) -> None:
    """Its calls wait, as they do in the cloud, until a deployment repairs it."""
    deploy(isolated_server, "broken", BROKEN="yes")
    call_id = client(isolated_server, "result = f('unreachable', 'broken').spawn().object_id")
    wait_until(lambda: modal(isolated_server, "app", "logs", "broken").count("before it was ready") >= 3, 30)
    code = (
        "try:\n    result = modal.FunctionCall.from_id(call_id).get(timeout=0)\n"
        "except TimeoutError:\n    result = 'waits'"
    )
    assert client(isolated_server, code, call_id=call_id) == "waits"
    deploy(isolated_server, "broken", BROKEN="no")
    code = "result = modal.FunctionCall.from_id(call_id).get()"
    assert client(isolated_server, code, call_id=call_id) == "reached"


PACKAGE = {
    "storefront/__init__.py": "",
    "storefront/web/__init__.py": "",
    "storefront/web/app.py": """
import importlib, modal
app = modal.App("package")

@app.function()
def found(names):
    there = []
    for name in names:
        try:
            there.append(importlib.import_module(name).__name__)
        except ImportError:
            pass
    return there
""",
    "storefront/prices.py": "",
    "storefront/deep/__init__.py": "",
    "storefront/deep/inner.py": "",
    "neighbour.py": "",
}


def test_a_function_in_a_package_has_all_of_the_package_and_nothing_beside_it(
    isolated_server: LocalModal, tmp_path: Path
) -> None:
    """The SDK mounts the top-level package, however deep in it the function's module is."""
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "modal", "deploy", "-m", "storefront.web.app"],
        env=isolated_server.env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = ["storefront.web.app", "storefront.prices", "storefront.deep.inner", "neighbour"]
    code = "result = f('found', 'package').remote(names)"
    assert client(isolated_server, code, names=names) == names[:3]


def test_a_start_that_takes_too_long_is_a_timeout(isolated_server: LocalModal) -> None:
    code, output, errors = modal_command(isolated_server, "run", f"{APPS / 'slow_start.py'}::late")
    assert code == 1 and "startup of late took longer than 1 s" in output + errors


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
    wait_until(lambda: [t for t in isolated_server.tasks("version") if t["running_inputs"]])
    modal(isolated_server, "app", "stop", "versions", "--yes")
    output, errors = waiting.communicate(timeout=60)
    assert "was stopped" in output, errors
    wait_until(lambda: not [t for t in isolated_server.tasks() if t["app_name"] == "versions"])
    assert client(isolated_server, NOT_FOUND.format(function="version", app="versions"))
    assert "stopped" in modal(isolated_server, "app", "list")


def test_schedules_fire_while_their_app_is_deployed(isolated_server: LocalModal) -> None:
    deploy(isolated_server, "scheduled")
    code = (
        "q = modal.Queue.from_name('ticks', create_if_missing=True)\n"
        "q.get(timeout=60)\n"  # the first firings wait for the container together
        "time.sleep(0.5)\n"
        "q.clear()\n"
        "result = [q.get(timeout=60) for _ in range(4)]"
    )
    assert len(set(client(isolated_server, code))) == 4
    isolated_server.control("fire", app_name="scheduled", function_name="weekly")
    code = "result = modal.Queue.from_name('weekly', create_if_missing=True).get(timeout=60)"
    assert client(isolated_server, code) == "fired"
    modal(isolated_server, "app", "stop", "scheduled", "--yes")
    wait_until(lambda: not isolated_server.tasks("tick"))
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

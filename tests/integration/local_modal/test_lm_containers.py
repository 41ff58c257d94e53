"""Where user code finds itself, and what ends it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import modal
import psutil
import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import APPS, client, deploy, modal_command
from tests.support.processes import is_running

INTERPRETER = Path(os.environ.get("LOCAL_MODAL_PYTHON", sys.executable))
"""What runs the containers."""
DESCRIBE = "first = f('describe').spawn(); result = first.get()"


def processes(*command: str) -> list[psutil.Process]:
    """The machine's live processes with exactly this command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["cmdline"] == list(command) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_isolated_containers_are_alike_and_apart(isolated_server: LocalModal) -> None:
    if isolated_server.mode != "isolated":
        pytest.skip("namespaces are not available here")
    seen = []
    for _ in range(2):
        seen.append(client(isolated_server, DESCRIBE))
        for task in isolated_server.tasks("describe"):
            isolated_server.control("kill", task_id=task["task_id"])
        wait_until(lambda: not isolated_server.tasks("describe"))
    first, second = seen
    # An interpreter below /tmp is there all the same, with the folders that lead to it.
    interpreter = {path.parts[2] for path in (INTERPRETER, INTERPRETER.resolve()) if path.parts[1] == "tmp"}
    assert first["environ"]["MODAL_TASK_ID"] != second["environ"]["MODAL_TASK_ID"]
    for each in seen:
        assert each["hostname"] == "modal"
        assert each["processes"] <= 3
        assert set(each["tmp"]) - interpreter == {"left-behind"}
        assert each["home"] == "/root" and not {"AIRFLOW_HOME", "TMPDIR"} & {*each["environ"]}
        assert each["cwd"] == "/root" and each["file"] == "/root/basics.py"
        assert each["copied"] and each["data_dir"] == "/data/inner"
        assert each["uid"] == os.getuid()
    assert first["pid"] == second["pid"]
    assert (
        not Path("/tmp/left-behind").exists()
        and not Path("/opt/deep").exists()
        and not Path("/data").exists()
    )


def test_shared_containers_are_kept_apart_by_their_environment(shared_server: LocalModal) -> None:
    seen = client(shared_server, DESCRIBE)
    own = str(shared_server.state_dir / "tasks" / seen["environ"]["MODAL_TASK_ID"])
    assert seen["home"] == f"{own}/home" and seen["environ"]["TMPDIR"] == f"{own}/tmp"
    assert "AIRFLOW_HOME" not in seen["environ"]
    # Nothing is mounted at /data, so the variable says where the volume is instead.
    assert seen["data_dir"].startswith(str(shared_server.state_dir)) and seen["data_dir"].endswith("/inner")
    assert seen["file"].endswith("/root/basics.py")


def test_the_environment_is_the_images_then_the_secrets_then_modals(server: LocalModal) -> None:
    environ = client(server, DESCRIBE)["environ"]
    assert environ["FROM_IMAGE"] == "image"
    assert environ["SHADOWED"] == "second secret"
    assert environ["SECRET"] == "s3cret"
    assert environ["MODAL_IS_REMOTE"] == "1" and environ["MODAL_ENVIRONMENT"] == "main"
    assert "LEAKED" not in environ and "MODAL_TOKEN_SECRET" not in environ


def test_nothing_of_the_checkout_is_on_the_path(server: LocalModal) -> None:
    path = client(server, DESCRIBE)["path"]
    checkout = str(Path(__file__).parents[3])
    site = sys.prefix
    assert [entry for entry in path if entry.startswith(checkout) and not entry.startswith(site)] == []


def test_a_flood_of_output_never_blocks_user_code(isolated_server: LocalModal) -> None:
    """A line longer than any pipe or reader's limit, and many short ones."""
    code = "f('talk').spawn(lines, width).get()\nresult = True"
    assert client(isolated_server, code, lines=1, width=3_000_000)
    assert client(isolated_server, code, lines=20_000, width=80)


def test_cancel_reaches_user_code_and_the_container_stays_warm(server: LocalModal) -> None:
    key = uuid.uuid4().hex
    result = client(
        server,
        "notes = modal.Dict.from_name('basics-notes', create_if_missing=True)\n"
        "call = f('stubborn').spawn(key)\n"
        "while notes.get(key) != 'running': time.sleep(0.01)\n"
        "call.cancel()\n"
        "try:\n    call.get(); result = 'finished'\n"
        "except (modal.exception.RemoteError, modal.exception.InputCancellation):\n    result = notes[key]",
        key=key,
    )
    assert result == "cancelled"
    wait_until(lambda: [task["running_inputs"] for task in server.tasks("stubborn")] == [[]])


def test_a_cancel_right_after_the_spawn_is_not_lost(isolated_server: LocalModal) -> None:
    """The SDK drops a cancel event that arrives while the input starts, so it has to come again."""
    result = client(
        isolated_server,
        "f('sleepy').remote(0)\n"
        "result = []\n"
        "for pause in (0, 0.001, 0.003, 0.01):\n"
        "    call = f('sleepy').spawn(50)\n"
        "    time.sleep(pause)\n"
        "    begin = time.time()\n"
        "    call.cancel()\n"
        "    try:\n        call.get(); result.append(99)\n"
        "    except Exception:\n        result.append(time.time() - begin)",
    )
    assert max(result) < 45, result  # a lost one would take 50


def test_cancel_with_terminate_containers_ends_the_container(isolated_server: LocalModal) -> None:
    call_id = client(isolated_server, "result = f('sleepy').spawn(50).object_id")
    task = wait_until(lambda: [t for t in isolated_server.tasks("sleepy") if t["running_inputs"]])[0]
    result = client(
        isolated_server,
        "call = modal.FunctionCall.from_id(call_id)\n"
        "call.cancel(terminate_containers=True)\n"
        "try:\n    call.get(); result = 'finished'\n"
        "except modal.exception.RemoteError as error:\n    result = 'terminated'",
        call_id=call_id,
    )
    assert result == "terminated"
    wait_until(lambda: task["task_id"] not in [t["task_id"] for t in isolated_server.tasks()])


@pytest.mark.parametrize("ignore_signals", [False, True])
def test_a_timeout_ends_the_input_and_everything_in_its_container(
    server: LocalModal, ignore_signals: bool
) -> None:
    result = client(
        server,
        "begin = time.time()\n"
        "try:\n    f('too_slow').spawn(ignore_signals).get()\n"
        "except modal.exception.FunctionTimeoutError:\n    result = time.time() - begin",
        ignore_signals=ignore_signals,
    )
    assert result >= 2
    wait_until(lambda: not server.tasks("too_slow"), 30, "the container is gone")
    wait_until(lambda: not processes("sleep", "1234"), 30, "so is the process that user code left")


def test_a_preempted_input_starts_again_at_once_beside_user_code_that_goes_on(server: LocalModal) -> None:
    """What the first attempt returns within its grace period comes too late."""
    key = uuid.uuid4().hex
    call_id, first = client(
        server,
        "call = f('reluctant').spawn(key, heed=False)\n"
        "events = modal.Queue.from_name('basics-events', create_if_missing=True)\n"
        "result = [call.object_id, events.get(timeout=60, partition=key)[1]]",
        key=key,
    )
    moved = server.control("preempt", task_id=first)["preempted"]
    assert [task_id for task_id, inputs in moved.items() if len(inputs) == 1] == [first]
    seen, answer, inputs = client(
        server,
        "events = modal.Queue.from_name('basics-events')\n"
        "seen = [events.get(timeout=60, partition=key) for _ in range(2)]\n"
        "modal.Dict.from_name('basics-notes')[key] = 'end'\n"
        "call = modal.FunctionCall.from_id(call_id)\n"
        "result = [seen, call.get(), call.num_inputs()]",
        key=key,
        call_id=call_id,
    )
    assert sorted(event for event, _ in seen) == ["begin", "interrupted"]
    assert dict(seen)["interrupted"] == first
    assert answer == dict(seen)["begin"] != first and inputs == 1
    wait_until(lambda: first not in [t["task_id"] for t in server.tasks()], 30, "its grace is over")
    logs = modal_command(server, "app", "logs", "basics")[1]
    assert f"Container {first} of reluctant is preempted" in logs


def test_a_preempted_container_may_finish_while_nobody_else_has_begun(isolated_server: LocalModal) -> None:
    key = uuid.uuid4().hex
    call_id, first = client(
        isolated_server,
        "call = f('reluctant').spawn(key, heed=True)\n"
        "events = modal.Queue.from_name('basics-events', create_if_missing=True)\n"
        "result = [call.object_id, events.get(timeout=60, partition=key)[1]]",
        key=key,
    )
    isolated_server.control("preempt", task_id=first)
    assert client(isolated_server, f"result = modal.FunctionCall.from_id({call_id!r}).get()") == first
    running = [t for t in isolated_server.tasks("reluctant") if t["running_inputs"]]
    assert running == [], "the input has started again although it had its result"


def test_orphans_of_user_code_end_with_their_container(server: LocalModal) -> None:
    call_id = client(server, "result = f('orphans').spawn().object_id")
    daemon = wait_until(lambda: processes("sleep", "4321"), 30, "the daemon runs")
    assert len(daemon) == 1
    server.control("kill", function_name="orphans")
    wait_until(lambda: daemon[0].pid not in [p.pid for p in processes("sleep", "4321")])
    # The input of a deployed app would start again for ever.
    client(server, f"result = modal.FunctionCall.from_id({call_id!r}).cancel(terminate_containers=True)")


def test_containers_die_with_the_server(fresh_local_modal: LocalModal) -> None:
    deploy(fresh_local_modal, "basics")
    client(fresh_local_modal, "result = f('orphans').spawn().object_id")
    pids = wait_until(lambda: [p.pid for p in processes("sleep", "4321")])
    pid = fresh_local_modal.tasks("orphans")[0]["pid"]
    fresh_local_modal.kill()
    wait_until(lambda: not any(is_running(each) for each in [pid, *pids]), 30, "all are gone")


@pytest.mark.one_sdk
@pytest.mark.skipif(os.getuid() != 0, reason="root is needed to become somebody else")
@pytest.mark.parametrize("no_namespaces", ["", "1"])
def test_an_ordinary_user_can_run_it_all(no_namespaces: str) -> None:
    """As uid 1000, with a home that it may write, and an interpreter that it may read."""
    system = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/bin:/usr/local/bin")
    if system is None or subprocess.run(["setpriv", "--version"], capture_output=True).returncode != 0:
        pytest.skip("no system Python of this version, or no setpriv")
    with tempfile.TemporaryDirectory(prefix="lm-user-") as home:
        python = _environment_for_everybody(system, Path(home, "venv"))
        script = Path(home, "as_user.py")
        script.write_text(AS_USER)
        os.chmod(home, 0o755)
        os.chown(home, 1000, 1000)
        done = subprocess.run(
            ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", python, str(script)],
            env={
                "HOME": home,
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(Path(__file__).parents[3] / "dev"),
                "LOCAL_MODAL_NO_NAMESPACES": no_namespaces,
                "APP": str(APPS / "basics.py"),
                "EXPECTED_MODE": "shared" if no_namespaces else "",
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def _environment_for_everybody(system: str, directory: Path) -> str:
    """A virtual environment of the system's Python with this one's packages, as far as they are files of its
    own: not symbolic links, whose targets a container need not see.
    """
    subprocess.run([system, "-m", "venv", "--without-pip", str(directory)], check=True)
    target = next(directory.glob("lib/python3*/site-packages"))
    source = Path(modal.__file__).parent.parent
    shutil.copytree(
        source, target, copy_function=_link, ignore=shutil.ignore_patterns("*.pth"), dirs_exist_ok=True
    )
    return str(directory / "bin" / "python")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


AS_USER = """
import os, subprocess, sys
from pathlib import Path
from local_modal.testing import LocalModal

with LocalModal(Path.home() / "state") as server:
    assert os.getuid() == 1000
    assert server.mode == (os.environ["EXPECTED_MODE"] or server.mode)
    subprocess.run([sys.executable, "-m", "modal", "deploy", os.environ["APP"]], env=server.env, check=True)
    code = "import modal; r = modal.Function.from_name('basics', 'describe').remote(); "
    code += "print(r['hostname'], r['pid'], r['uid'])"
    output = subprocess.check_output([sys.executable, "-c", code], env=server.env, text=True).split()
    assert output[2] == "1000", output
    assert server.mode == "shared" or output[:2] == ["modal", "2"], output

# What user code leaves is in the way of no container, and of no server.
left = Path.home() / "state" / "tasks" / "ta-left" / "home" / "private"
left.mkdir(parents=True)
(left / "file").touch()
left.chmod(0)
with LocalModal(Path.home() / "state") as server:
    assert not left.parents[1].exists()
"""

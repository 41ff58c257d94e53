"""Containers that a zygote forks are what new interpreters would be, and start much sooner."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from local_modal.testing import ControlError, LocalModal, wait_until
from tests.integration.local_modal.conftest import client, deploy
from tests.integration.local_modal.test_lm_containers import processes
from tests.support.processes import is_running

SEEDED = [sys.executable, "-c", "print(hash('x'))"]


@pytest.fixture(scope="module", params=["isolated", "shared"])
def mode(request: pytest.FixtureRequest) -> dict[str, str]:
    return {"LOCAL_MODAL_NO_NAMESPACES": "1"} if request.param == "shared" else {}


@pytest.fixture(scope="module")
def forking(mode: dict[str, str]) -> Iterator[LocalModal]:
    with LocalModal(env=mode) as server:
        deploy(server, "forked")
        yield server


@pytest.fixture(scope="module")
def plain(mode: dict[str, str]) -> Iterator[LocalModal]:
    with LocalModal(arguments=["--no-zygote"], env=mode) as server:
        deploy(server, "forked")
        yield server


def comparable(server: LocalModal) -> Any:
    """What `inside` tells, without what differs between any two containers of any two servers."""
    text: str = client(server, "result = json.dumps(f('inside', 'forked').remote())")
    for task in server.tasks("inside"):
        text = text.replace(task["task_id"], "TASK")
    # In shared mode the mounts are in a directory named after what they are.
    return json.loads(re.sub(r"roots/\w+", "roots/MOUNTS", text.replace(str(server.state_dir), "STATE")))


def zygotes(server: LocalModal) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["ppid", "cmdline"]):
        command = process.info["cmdline"] or [""]
        if process.info["ppid"] == server.pid and any(part.endswith("zygote.py") for part in command):
            found.append(process)
    return found


def test_a_forked_container_is_like_a_new_interpreter(forking: LocalModal, plain: LocalModal) -> None:
    seen, expected = comparable(forking), comparable(plain)
    assert seen == expected
    assert seen["ours"] == [] and seen["child environ"] == 1


def test_what_a_fork_cannot_take_over_gets_an_interpreter_of_its_own(forking: LocalModal) -> None:
    expected = int(subprocess.check_output(SEEDED, env=os.environ | {"PYTHONHASHSEED": "7"}))
    optimize, seeded, path = client(forking, "result = f('with_variables', 'forked').remote()")
    assert (optimize, seeded) == (1, expected) and path[0].endswith("/root")
    assert client(forking, "result = f('with_startup_code', 'forked').remote()") is True


def test_exit_handlers_run_and_nothing_is_left(forking: LocalModal) -> None:
    key = uuid.uuid4().hex
    client(forking, "f('ends', 'forked').remote(key)\nresult = True", key=key)
    assert processes("sleep", "9876")
    forking.control("kill", function_name="ends", signal="SIGINT")
    read = "result = modal.Dict.from_name('forked-notes').get(key)"
    wait_until(lambda: client(forking, read, key=key) == "ended", 30, "the exit handler has run")
    wait_until(lambda: not forking.tasks("ends"))
    wait_until(lambda: "ended: exit code 0" in forking.log)
    wait_until(lambda: not processes("sleep", "9876"), 30, "what user code left has ended")


def test_inputs_start_again_when_the_zygote_dies(forking: LocalModal) -> None:
    key = uuid.uuid4().hex
    call_id = client(forking, "result = f('waits', 'forked').spawn(key).object_id", key=key)
    running = wait_until(lambda: [task for task in forking.tasks("waits") if task["running_inputs"]])[0]
    [zygote] = [
        process
        for process in zygotes(forking)
        if running["pid"] in [below.pid for below in process.children(recursive=True)]
    ]
    zygote.kill()
    finish = (
        "modal.Dict.from_name('forked-notes')[key] = True\n"
        "result = modal.FunctionCall.from_id(call_id).get(timeout=60)"
    )
    assert client(forking, finish, key=key, call_id=call_id) != running["task_id"]
    wait_until(lambda: not is_running(running["pid"]))


def test_a_cold_start_takes_a_fraction_of_the_time(forking: LocalModal, plain: LocalModal) -> None:
    """Half is promised here, on machines of any load; a quiet one shows a tenth."""
    code = "begin = time.time()\nresult = [begin, *f('chance', 'forked').remote()]"
    # In turns, so that both meet the same load.
    answers = [[client(server, code) for server in (forking, plain)] for _ in range(4)]
    cold, slow = (min(began - begin for begin, began, *_ in told) for told in zip(*answers, strict=True))
    assert cold < slow / 2
    assert len({told[2] for told, _ in answers}) == 4


def test_hash_seeds_change_now_and_then(forking: LocalModal) -> None:
    chance = "result = f('chance', 'forked').remote()[2]"
    first = client(forking, chance)
    wait_until(lambda: client(forking, chance) != first, 30, "another zygote has taken over")
    for task in forking.tasks():
        # One that nothing asks for any more may end by itself.
        with contextlib.suppress(ControlError):
            forking.control("kill", task_id=task["task_id"])
    wait_until(lambda: len(zygotes(forking)) == 1, 30, "the old one has gone")

"""Limits on memory and processor time, enforced by the kernel or by watching."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import client, deploy
from tests.integration.local_modal.test_lm_server import local_modal

pytestmark = pytest.mark.one_sdk

NOTE = "ran out of memory: its limit is 256 MiB"


@pytest.fixture(scope="module", params=["cgroups", "watched"])
def hungry(request: pytest.FixtureRequest) -> Iterator[LocalModal]:
    without = {"LOCAL_MODAL_NO_CGROUPS": "1"} if request.param == "watched" else {}
    with LocalModal(env=without) as server:
        if request.param == "cgroups" and server.limits["memory"] == "watched":
            if os.environ.get("CI"):
                pytest.fail("control groups are needed in CI")
            pytest.skip("control groups are not available here")
        assert without == {} or server.limits == {"memory": "watched", "cpu": "none"}
        deploy(server, "hungry")
        yield server


@pytest.mark.parametrize("how", ["self", "child"])
def test_a_container_out_of_memory_is_killed_and_its_input_starts_again(hungry: LocalModal, how: str) -> None:
    code = "call = f('eat', 'hungry').spawn(key, 900, how)\nresult = [call.object_id, call.get()]"
    call_id, attempt = client(hungry, code, key=uuid.uuid4().hex, how=how)
    assert attempt == 2
    logs = (
        "import datetime\n"
        "since = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=5)\n"
        "call = modal.FunctionCall.from_id(call_id)\n"
        "result = [str(entry) for entry in call.logs.fetch(since=since)]"
    )
    assert [line for line in client(hungry, logs, call_id=call_id) if f"Container {NOTE}" in line]
    assert f"signal 9 ({NOTE})" in hungry.log


def test_a_request_is_no_limit(hungry: LocalModal) -> None:
    assert client(hungry, "result = f('exceed_request', 'hungry').remote(400)") == 400 * 2**20


def test_processor_time_is_limited_by_the_kernel(hungry: LocalModal) -> None:
    if hungry.limits["cpu"] == "none":
        assert "processor limits are not enforced (LOCAL_MODAL_NO_CGROUPS is set)" in hungry.log
        return
    assert client(hungry, "result = f('spin', 'hungry').remote(0.6)") < 0.5


def test_groups_go_with_their_containers_and_after_kill_9_with_the_next_server(tmp_path: Path) -> None:
    with LocalModal(tmp_path / "state") as server:
        if server.limits["memory"] == "watched":
            pytest.skip("control groups are not available here")
        made = [Path(path) for path in json.loads((server.state_dir / "cgroups.json").read_text())]
        assert not any(path.exists() for path in made)
        deploy(server, "hungry")
        task_id, membership = client(server, "result = f('groups', 'hungry').remote()")
        assert all((path / task_id).is_dir() for path in made) and task_id in membership
        server.control("kill", task_id=task_id)
        wait_until(lambda: not any((path / task_id).exists() for path in made))
        client(server, "result = f('groups', 'hungry').remote()")
        wait_until(lambda: server.tasks("groups"))
        server.kill()
        assert all(path.is_dir() for path in made)
        server.start()
        assert not any(path.exists() for path in made)


def test_what_cannot_be_had_is_said_and_refused_on_request(tmp_path: Path) -> None:
    required = ("serve", "--state-dir", str(tmp_path / "state"), "--require-isolation")
    refused = local_modal(*required, LOCAL_MODAL_NO_NAMESPACES="1", LOCAL_MODAL_NO_CGROUPS="1")
    assert refused.returncode == 1 and refused.stdout == "" and "Traceback" not in refused.stderr
    said = refused.stderr.strip().splitlines()[-1]
    assert said == "--require-isolation: " + "; ".join(
        [
            "containers share the host's file tree (LOCAL_MODAL_NO_NAMESPACES is set)",
            "memory limits are enforced by watching, not by the kernel (LOCAL_MODAL_NO_CGROUPS is set)",
            "processor limits are not enforced (LOCAL_MODAL_NO_CGROUPS is set)",
        ]
    )

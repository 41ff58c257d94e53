"""The terminal view, in a terminal and without one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from local_modal.testing import LocalModal
from tests.integration.local_modal.command_line import in_terminal, local_modal
from tests.integration.local_modal.conftest import QUICK, client, deploy

pytestmark = pytest.mark.one_sdk


@pytest.fixture(scope="module")
def quiet_server() -> Iterator[LocalModal]:
    """A server whose every function, RPC and fault finds room on a screen."""
    with LocalModal(arguments=QUICK) as server:
        deploy(server, "basics")
        yield server


@pytest.mark.parametrize("more", [[], ["--plain"]])
def test_a_running_server_is_shown_until_ctrl_c(quiet_server: LocalModal, more: list[str]) -> None:
    client(quiet_server, "result = f('square').remote(3)")
    call = client(quiet_server, "result = f('sleepy').spawn(50).object_id")
    busy = quiet_server.wait_for_container("sleepy")
    with quiet_server.fault("latency", rpc="QueueLen", delay=0.25):
        shown, code = in_terminal(
            *("top", "--state-dir", str(quiet_server.state_dir), "--interval", "0.1", *more),
            until=lambda text: text.count("local Modal http") >= 3,
        )
    cancel = "modal.FunctionCall.from_id(call).cancel(terminate_containers=True); result = 0"
    client(quiet_server, cancel, call=call)
    assert code == 0 and "Traceback" not in shown
    for words in (
        quiet_server.server_url, "basics.square", "basics.sleepy", busy["task_id"], str(busy["pid"]),
        busy["running_inputs"][0]["input_id"], "busy", "cold starts", "FunctionMap", "latency", "delay=0.25",
        "Log",
    ):  # fmt: skip
        assert words in shown, words


def test_one_frame_is_printed_for_pipes_and_programs(quiet_server: LocalModal) -> None:
    client(quiet_server, "result = f('square').remote(3)")
    state = ["--state-dir", str(quiet_server.state_dir)]
    for words in (["top", *state], ["top", "--once", *state]):  # without a terminal there is one frame only
        done = local_modal(*words)
        assert done.returncode == 0 and "\x1b" not in done.stdout and "basics.square" in done.stdout
    for words in (["top", "--json", *state], ["status", "--json", *state]):
        status = json.loads(local_modal(*words).stdout)
        [square] = [row for row in status["functions"] if row["function_name"] == "square"]
        assert square["succeeded"] >= 1 and square["cold_starts"] >= 1
        assert status["rpcs"]["FunctionMap"]["calls"] >= 1 and status["server"]["memory"] > 2**20
        assert status["server"]["server_url"] == quiet_server.server_url

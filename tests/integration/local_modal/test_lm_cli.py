"""The command line as a stranger meets it: help, refusals in a sentence, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.command_line import command, environ, local_modal
from tests.integration.local_modal.conftest import APPS
from tests.support.processes import is_running

pytestmark = pytest.mark.one_sdk


@pytest.mark.parametrize(
    "words", [[], ["serve"], ["run"], ["env"], ["top"], ["status"], ["fault"], ["fault", "lose"]]
)
def test_help_says_what_it_is_for(words: list[str]) -> None:
    done = local_modal(*words, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("usage: python -m local_modal") and "options:" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "COMMAND"),
        (["serve", "--host", "0.0.0.0"], "0.0.0.0: loopback only (127.0.0.1)"),
        (["serve", "--host", "::1"], "loopback only"),
        (["serve", "--port", "x"], "--port"),
        (["run", "--port", "x", "--", "true"], "--port"),
        (["fault", "explode"], "invalid choice: 'explode'"),
        (["fault", "late", "--rpc", "A"], "--delay"),
    ],
)
def test_wrong_usage_is_2(words: list[str], said: str) -> None:
    done = local_modal(*words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_what_the_user_can_mend_is_1_and_a_sentence(isolated_server: LocalModal, tmp_path: Path) -> None:
    state = ["--state-dir", str(isolated_server.state_dir)]
    plan = tmp_path / "plan.yaml"
    plan.write_text("[{fault: fail}]")
    for words, said in (
        (["fault", "fail", *state], "needs the name of an RPC"),
        (["fault", "fail", "--rpc", "A", "--status", "SAD", *state], "'SAD' is no gRPC status"),
        (["fault", "clear", "f99", *state], "no fault 'f99'"),
        (["fault", "expire", "--dict", "nope", *state], "no Dict 'nope'"),
        (["fault", "replay", str(plan), *state], "entry 1"),
        (["fault", "replay", str(tmp_path / "none.json"), *state], "No such file"),
        (["serve", "--state-dir", str(tmp_path), "--faults", str(plan)], "entry 1"),
        (["run"], "which command?"),
        (["run", "--", "/no/such/command"], "/no/such/command: No such file"),
        (["top", "--state-dir", str(tmp_path)], "No server runs on"),
    ):
        done = local_modal(*words)
        assert done.returncode == 1, words
        assert said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_without_a_server_the_answer_comes_at_once(tmp_path: Path) -> None:
    """The SDK would try for a minute. A server that was killed leaves its file behind, and its pid may belong
    to somebody else.
    """
    with LocalModal(tmp_path) as server:
        alive = local_modal("status", "--state-dir", str(tmp_path))
        assert alive.returncode == 0 and server.server_url in alive.stdout
        server.kill()
        ready = json.loads((tmp_path / "server.json").read_text())
        (tmp_path / "server.json").write_text(json.dumps(ready | {"pid": os.getpid()}))
        for word in ("status", "env", "top"):
            began = time.monotonic()
            done = local_modal(word, "--state-dir", str(tmp_path))
            assert done.returncode == 1 and "No server runs on" in done.stderr and done.stdout == ""
            assert time.monotonic() - began < 45


def test_faults_are_set_listed_and_cleared(isolated_server: LocalModal) -> None:
    state = ["--state-dir", str(isolated_server.state_dir)]
    done = local_modal("fault", "lose", "--rpc", "Nothing*", "--count", "3", "--connection", *state)
    assert done.returncode == 0, done.stderr
    fault = json.loads(done.stdout)
    assert (fault["fault"], fault["count"], fault["connection"], fault["state"]) == (
        "lose",
        3,
        True,
        "active",
    )
    listed = json.loads(local_modal("fault", "list", *state).stdout)
    assert listed["seed"] == isolated_server.seed and fault in listed["faults"]
    assert json.loads(local_modal("fault", "clear", fault["id"], *state).stdout) == {"cleared": [fault["id"]]}
    [after] = [entry for entry in isolated_server.faults() if entry["id"] == fault["id"]]
    assert after["state"] == "cleared"


def test_a_server_for_one_command(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('[{"fault": "fail", "rpc": "FunctionMap", "count": 1}]')
    program = (
        "import subprocess, sys, modal\n"
        "subprocess.run([sys.executable, '-m', 'modal', 'deploy', sys.argv[1]], check=True)\n"
        "assert modal.Function.from_name('basics', 'square').remote(3) == 9\n"
        "sys.exit(7)"
    )
    run = [sys.executable, "-c", program, str(APPS / "basics.py")]
    done = local_modal("run", "--seed", "3", "--faults", str(plan), "--", *run)
    assert done.returncode == 7, done.stderr
    kept = Path(done.stderr.rpartition("--faults ")[2].strip())
    events = [json.loads(line) for line in kept.read_text().splitlines()]
    shutil.rmtree(kept.parent)
    assert [event["event"] for event in events] == ["started", "set", "strike"] and events[0]["seed"] == 3


def test_a_server_for_one_command_goes_with_it(tmp_path: Path) -> None:
    """Ctrl-C is for the command, which may still need the server while it ends."""
    program = (
        "import os, signal, sys, time, urllib.request\n"
        "try:\n    print(os.environ['MODAL_SERVER_URL'], flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    import modal\n    modal.Dict.from_name('last', create_if_missing=True)['words'] = 1\n"
        "    sys.exit(130)"
    )
    with subprocess.Popen(
        command("run", "--state-dir", str(tmp_path), "--", sys.executable, "-c", program),
        env=environ(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("http://127.0.0.1:")
        server = json.loads((tmp_path / "server.json").read_text())["pid"]
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    wait_until(lambda: not is_running(server))
    assert not (tmp_path / "server.json").exists()

"""dev/cloud_check as a command, against the local Modal server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import client, modal

pytestmark = pytest.mark.one_sdk

COMMAND = [sys.executable, "-m", "cloud"]
DEV = str(Path(__file__).parents[3] / "dev")
LEFT = """
result = [
    each.name for kind in (modal.Dict, modal.Queue, modal.Volume) for each in kind.objects.list()
    if each.name.startswith("cloud-check-")
]
"""


def assert_nothing_is_left(server: LocalModal) -> None:
    assert client(server, LEFT) == []
    # The names of the columns differ between versions of modal.
    apps = [list(app.values()) for app in json.loads(modal(server, "app", "list", "--json"))]
    ours = [app for app in apps if any(str(value).startswith("cloud-check-") for value in app)]
    assert all("stopped" in app for app in ours), ours
    wait_until(lambda: not [t for t in server.tasks() if t["app_name"].startswith("cloud-check-")])


def test_it_reports_and_removes_what_it_made(isolated_server: LocalModal) -> None:
    chosen = ["round trip", "SDK writes", "error of user code", "snapshot"]
    done = subprocess.run(
        [*COMMAND, "--json", *(word for name in chosen for word in ("--only", name))],
        env=isolated_server.env | {"PYTHONPATH": DEV},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    verdicts = {finding["name"]: finding["verdict"] for finding in report["findings"]}
    assert verdicts == {
        "round trip": "as assumed",
        "SDK writes": "as assumed",
        "error of user code": "as assumed",
        "zygote in a snapshot": "could not be checked",
    }
    assert report["server"] == isolated_server.server_url and report["cloud"] is False
    assert_nothing_is_left(isolated_server)


def test_ctrl_c_removes_what_it_made(isolated_server: LocalModal) -> None:
    running = subprocess.Popen(
        [*COMMAND, "--only", "time limit"],
        env=isolated_server.env | {"PYTHONPATH": DEV},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    assert "is deployed" in running.stderr.readline()
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "what was made is removed" in said, said
    assert_nothing_is_left(isolated_server)


def test_without_a_token_it_says_how_to_get_one(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
    done = subprocess.run(
        COMMAND,
        env=environ | {"PYTHONPATH": DEV, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 4 and done.stdout == ""
    assert "modal token new" in done.stderr and "--local" in done.stderr and "Traceback" not in done.stderr

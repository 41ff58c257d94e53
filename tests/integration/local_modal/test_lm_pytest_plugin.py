"""The pytest plugin in somebody else's tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.local_modal.command_line import environ

pytestmark = pytest.mark.one_sdk

TESTS = """
import subprocess, sys

PUT = "import modal; modal.Queue.from_name('orders', create_if_missing=True).put(1)"
LENGTH = "import modal; print(modal.Queue.from_name('orders').len())"

def run(server, code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=server.env, check=True, capture_output=True).stdout

def test_an_order_is_put_once(local_modal):
    assert local_modal.seed == 11
    with local_modal.fault("lose", rpc="QueuePut", count=1) as fault:
        run(local_modal, PUT)
        assert fault.struck == 1 and fault.state == "spent"
    assert int(run(local_modal, LENGTH)) == 1

def test_the_server_is_the_same_one(local_modal):
    assert [fault["fault"] for fault in local_modal.faults()] == ["lose"]
"""


def test_users_tests_get_a_server_and_its_faults(tmp_path: Path) -> None:
    (tmp_path / "test_orders.py").write_text(TESTS)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "local_modal.pytest_plugin", "-p", "no:cacheprovider"),
            *("--rootdir", str(tmp_path), "-c", "/dev/null", "--local-modal-seed", "11", str(tmp_path)),
        ],
        env=environ(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert "local_modal: --local-modal-seed 11" in done.stdout and "2 passed" in done.stdout

"""Where a run goes to, and what it lacks: found out before anything is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEV = str(Path(__file__).parents[2] / "dev")
PROGRAM = "from cloud import target; print(target.server_url(), target.is_cloud())"


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MODAL")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**own, "PYTHONPATH": DEV, "MODAL_CONFIG_PATH": "/nonexistent", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("url", "cloud"),
    [("", True), ("https://modal.example:443", True), ("http://127.0.0.1:7070", False), ("unix:///s", False)],
)
def test_only_a_server_of_this_machine_costs_nothing(url: str, cloud: bool) -> None:
    said = run("-c", PROGRAM, **({"MODAL_SERVER_URL": url} if url else {})).stdout.split()
    assert said == [url or "https://api.modal.com", str(cloud)]


def test_everything_that_is_missing_is_said_at_once() -> None:
    done = run("-m", "cloud.target")
    assert done.returncode == 2
    assert "modal token new" in done.stderr and "MODALFLOW_TEST_DATABASE_URL" in done.stderr


def test_a_server_that_is_not_there_is_said_quickly() -> None:
    # Nothing listens on the discard port of the loopback interface.
    environ = {
        "MODAL_SERVER_URL": "http://127.0.0.1:9",
        "MODAL_TOKEN_ID": "ak-x",
        "MODAL_TOKEN_SECRET": "as-x",
    }
    done = run("-m", "cloud.target", **environ)
    assert done.returncode == 4 and "http://127.0.0.1:9 can't be reached" in done.stderr

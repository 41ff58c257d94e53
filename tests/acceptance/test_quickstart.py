"""dev/quickstart, as its script runs it: from nothing to a successful run, and again on what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXPECTED = {
    "flaky": "success",
    "numbers": "success",
    "shell": "success",
    "square": ["success", "success", "success"],
    "total": "success",
}


def _quickstart(state_dir: Path) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-m", "tools.quickstart", "--no-wait", "--json", "--state-dir", str(state_dir)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "dev")},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (line,) = done.stdout.splitlines()
    result: dict[str, Any] = json.loads(line)
    return result, done.stderr


@pytest.mark.faults(reason="dev/quickstart is about the local Modal server")
def test_first_and_second_run(tmp_path: Path) -> None:
    first, said = _quickstart(tmp_path)
    assert (first["dag_id"], first["state"]) == ("modalflow_quickstart", "success")
    assert first["tasks"] == EXPECTED
    assert "Fernet key was made" in said

    second, said = _quickstart(tmp_path)
    assert second["tasks"] == EXPECTED
    assert second["run_id"] != first["run_id"]
    assert "Fernet key was made" not in said
    assert "modalflow_quickstart.py: unchanged" in said

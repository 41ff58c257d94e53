"""A few tasks of dev/chaos, with every kind of fault; ``dev/chaos/run`` has the thousand."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 840.0


@pytest.mark.skipif(
    not os.environ.get("MODALFLOW_TEST_CHAOS"), reason="takes minutes; set MODALFLOW_TEST_CHAOS=1"
)
@pytest.mark.timeout(900)
def test_promises_are_kept_while_everything_fails(airflow_database: str, tmp_path: Path) -> None:
    folder = tmp_path / "chaos"
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "chaos", "--database", airflow_database, "--folder", str(folder)),
            *("--tasks", "10", "--seed", "3", "--containers", "2", "--outage", "3", "--minutes", "10"),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "dev"), str(ROOT)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = run.communicate(timeout=MOST_SECONDS)
    finally:
        # It has processes of its own, which outlive it if it is killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert run.returncode == 0, printed
    assert "lost 0, doubled 0, leaked 0, without reason 0" in printed
    assert "struck: none" not in printed

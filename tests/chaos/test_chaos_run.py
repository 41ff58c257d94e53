"""A few tasks of dev/chaos, with every kind of fault; ``dev/chaos/run`` has the thousand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    not os.environ.get("MODALFLOW_TEST_CHAOS"), reason="takes minutes; set MODALFLOW_TEST_CHAOS=1"
)
@pytest.mark.timeout(900)
def test_promises_are_kept_while_everything_fails(airflow_database: str, tmp_path: Path) -> None:
    folder = tmp_path / "chaos"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "chaos", "--database", airflow_database, "--folder", str(folder)),
            *("--tasks", "10", "--seed", "3", "--containers", "2", "--outage", "3", "--minutes", "10"),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "dev"), str(ROOT)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "lost 0, doubled 0, leaked 0, without reason 0" in done.stdout
    assert "struck: none" not in done.stdout

"""The commands as processes: through `airflow`, and with a Modal that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import closed_port

BIN = Path(sys.executable).parent


def start(tmp_path: Path, program: str, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    """Start a command in an empty home, with no setting of the caller's."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW", "MODAL", "MODALFLOW"))
    }
    return subprocess.Popen(
        [str(BIN / program), *arguments],
        env={**own, "HOME": str(tmp_path), "AIRFLOW_HOME": str(tmp_path / "airflow"), **environ},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def test_airflow_hands_everything_on(tmp_path: Path) -> None:
    """Options that come first, options of ours, exit codes."""
    help_of_ours = start(tmp_path, "airflow", "modalflow", "--help")
    refused = start(tmp_path, "airflow", "modalflow", "dags", "list", "--env", "A", "--json")

    code, out, _ = ended(help_of_ours)
    assert code == 0
    assert "Usage: airflow modalflow [OPTIONS] COMMAND" in out
    code, out, err = ended(refused)
    assert code == 2
    assert json.loads(out)["error"]["message"] in err


@pytest.fixture
def nobody() -> Iterator[int]:
    with closed_port() as port:
        yield port


def test_modal_that_does_not_answer_is_told_quickly(tmp_path: Path, nobody: int) -> None:
    """In about 5 seconds, where the SDK itself would try for a minute."""
    config = tmp_path / "config.yaml"
    config.write_text("database: {connection_string: 'postgresql://u:hush@h/d'}")
    dag = tmp_path / "my_dag.py"
    dag.write_text("x = 1")
    url = f"http://127.0.0.1:{nobody}"
    token = {"MODAL_TOKEN_ID": "ak-x", "MODAL_TOKEN_SECRET": "as-hush", "MODAL_SERVER_URL": url}
    began = time.monotonic()
    commands = [
        start(tmp_path, "modalflow", *command, "--json", MODALFLOW_ENV="dev", **token)
        for command in (
            ["create", "--config", str(config)],
            ["dags", "create", "--file", str(dag)],
            ["destroy", "--yes"],
        )
    ]
    for command in commands:
        code, out, err = ended(command)
        assert code == 4
        error = json.loads(out)["error"]
        assert error["kind"] == "unreachable"
        assert url in error["message"]
        assert error["message"] in err
        assert "hush" not in out + err
        assert "Traceback" not in err
    assert time.monotonic() - began < 55


def test_a_missing_token_says_how_to_get_one(tmp_path: Path) -> None:
    code, _, err = ended(start(tmp_path, "modalflow", "dags", "list", "--env", "dev"))
    assert code == 2
    assert "modal token new" in err
    assert len(err.splitlines()) <= 2


def test_output_into_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    """As in `modalflow --help | head -0`."""
    process = start(tmp_path, "modalflow", "--help")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(60)
    process.stderr.close()

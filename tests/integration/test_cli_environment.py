"""The commands as a person types them, on an environment that was created by the command."""

from __future__ import annotations

import io
import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import modal
import psycopg2
import pytest
from click.testing import CliRunner, Result

from airflow_provider_modal.cli.main import cli
from local_modal.testing import LocalModal
from tests.support.modal_env import using

MODALFLOW = str(Path(sys.executable).with_name("modalflow"))
DAG = """
from airflow.sdk import dag, task

@dag(schedule=None)
def {name}():
    @task
    def wait():
        import time
        time.sleep(600)
    wait()

{name}()
"""


@dataclass
class Environment:
    """An environment, and the commands that work on it."""

    name: str
    server: LocalModal
    config: Path
    folder: Path
    first: Result = field(init=False)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command as a process."""
        return subprocess.Popen(
            [MODALFLOW, *arguments],
            env={**self.server.env, "MODALFLOW_ENV": self.name},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0, answer: str | None = None) -> Result:
        """Run a command in this process and check its exit code."""
        environ = {"MODALFLOW_ENV": self.name}
        done = CliRunner().invoke(cli, arguments, prog_name="modalflow", env=environ, input=answer)
        assert done.exit_code == code, f"{arguments}: {done.exit_code}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def write(self, name: str, text: str) -> str:
        """Write a file and return its path."""
        (self.folder / name).write_text(text)
        return str(self.folder / name)


@pytest.fixture(scope="module")
def environment(
    postgres_url: str, local_modal: LocalModal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Environment]:
    name = f"cli-{secrets.token_hex(3)}"
    database = f"cli_{secrets.token_hex(3)}"
    admin = psycopg2.connect(postgres_url)
    admin.autocommit = True
    admin.cursor().execute(f"CREATE DATABASE {database}")
    folder = tmp_path_factory.mktemp("cli")
    config = folder / "config.yaml"
    config.write_text(
        f"database: {{connection_string: '{postgres_url.rpartition('/')[0]}/{database}'}}\n"
        # Time limit of the DAG check: generous, for a machine that is busy with other tests.
        "scheduler: {interval_seconds: 60, parse_timeout_seconds: 20}\n"
    )
    environment = Environment(name, local_modal, config, folder)
    with using(local_modal):
        environment.first = environment.run("create", "--config", str(config))
        yield environment
        environment.run("destroy", "--yes")
    admin.cursor().execute(f"DROP DATABASE {database} WITH (FORCE)")
    admin.close()


def test_create_tells_what_it_does_and_the_key_once(environment: Environment) -> None:
    first, again = environment.first, environment.json("create", "--config", str(environment.config))
    assert "Fernet key" in first.stderr
    assert "+ create volume: airflow-vol-" in first.stderr
    assert "volume created" in first.stderr
    assert f"Environment {environment.name} is ready" in first.stdout
    assert "modalflow dags create --file" in first.stdout
    assert again["steps"]["volume"] == "unchanged"
    assert again["steps"]["schema"] == "unchanged"
    assert again["fernet_key"] is None
    assert again["warnings"] == []
    password = environment.config.read_text().split(":")[3].split("@")[0]
    assert password not in first.stdout + first.stderr + json.dumps(again)


def test_doctor_finds_nothing_wrong_and_then_what_is(environment: Environment) -> None:
    findings = {finding["check"]: finding for finding in environment.json("doctor")}
    # The first runs may come before create is through.
    assert {name for name, each in findings.items() if each["status"] != "ok"} <= {"scheduler"}, findings
    assert set(findings) == {
        *("modal", "manifest", "release", "gpus", "plan", "app", "volume", "scheduler", "clock"),
        *("database", "tls", "pooler", "connections", "owner", "schema", "clock of the database"),
    }
    status = environment.json("status")
    assert (status["counts"]["tasks"], status["counts"]["failed_runs"], status["not_counted"]) == (
        {},
        0,
        None,
    )
    assert "Tasks: none under way" in environment.run("status").stdout
    assert environment.json("status", "--offline")["counts"] is None
    told = environment.run("doctor", "--env", "absent", code=1)
    assert "✓ modal" in told.stdout
    assert "✗ manifest: environment absent is not deployed" in told.stdout
    assert "→ modalflow create --env absent --config" in told.stdout
    assert "? database: no container answers" in told.stdout


def test_more_tasks_than_connections_are_warned_of(environment: Environment) -> None:
    config = environment.write(
        "many.yaml", environment.config.read_text() + "executor: {parallelism: 5000}\n"
    )
    created = environment.run("create", "--config", config)
    assert "Warning: executor.parallelism is 5000" in created.stderr
    assert "max_connections" in created.stderr


def test_a_dry_run_tells_what_it_would_do_and_does_nothing(environment: Environment) -> None:
    config = environment.write("dry.yaml", environment.config.read_text() + "workers: {big: {cpu: 8}}\n")
    there = environment.json("create", "--config", config, "--dry-run")
    assert {step["step"]: step["action"] for step in there["steps"]} == {
        **dict.fromkeys(("image", "secrets", "app", "database", "schema"), "update"),
        **dict.fromkeys(("volume", "state"), "keep"),
    }
    assert {"what": "workers.big.cpu", "deployed": None, "now": 8} in there["changes"]
    absent = environment.run("create", "--config", config, "--dry-run", "--env", "absent")
    assert "+ create volume: airflow-vol-absent" in absent.stdout
    assert "big (cpu 8, 2048 MiB)" in absent.stdout
    assert environment.json("destroy", "--env", "absent", "--yes", code=3)["error"]["kind"] == "not_found"


def test_the_life_of_a_dag_file(environment: Environment) -> None:
    path = environment.write("life.py", DAG.format(name="life"))
    created = environment.json("dags", "create", "--file", path)
    assert created == {"file": "life.py", "outcome": "created", "dag_ids": ["life"], "scheduler_woken": True}
    assert "unchanged" in environment.run("dags", "create", "--file", path, "--no-check").stdout

    environment.write("life.py", DAG.format(name="life") + "# another\n")
    refused = environment.run("dags", "create", "--file", path, code=2)
    assert f"modalflow dags update --file {path}" in refused.stderr
    assert environment.json("dags", "update", "--file", path, "--no-check")["outcome"] == "updated"
    assert environment.json("dags", "update", "--file", path, "--no-check")["outcome"] == "unchanged"

    asked = environment.run("dags", "delete", "--file", "life.py", answer="n\n", code=1)
    assert "nothing was changed" in asked.stderr
    assert environment.json("dags", "delete", "--file", "life.py", "--yes")["outcome"] == "deleted"
    missing = environment.json("dags", "delete", "--file", "life.py", "--yes", code=3)["error"]
    assert "no DAG file life.py" in missing["message"]


def test_a_file_that_is_refused_is_not_uploaded(environment: Environment) -> None:
    path = environment.write("broken.py", "from airflow.sdk import dag\ndef broken(:\n")
    refused = environment.run("dags", "create", "--file", path, code=2)
    assert "line 2: SyntaxError" in refused.stderr
    update = environment.run("dags", "update", "--file", path, code=3)
    assert "has no broken.py; to add it: modalflow dags create" in update.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dags", "trigger", "nothing"], "modalflow dags list"),
        (["runs", "show", "nothing", "r"], "nothing"),
        (["logs", "nothing", "r"], "nothing"),
    ],
    ids=" ".join,
)
def test_what_does_not_exist_is_exit_code_3(
    environment: Environment, arguments: list[str], says: str
) -> None:
    assert says in environment.run(*arguments, code=3).stderr


@pytest.mark.parametrize(
    "arguments", [["dags", "list"], ["dags", "create", "--file", "x.py"], ["destroy", "--yes"]], ids=" ".join
)
def test_an_environment_that_does_not_exist_is_exit_code_3(
    environment: Environment, arguments: list[str]
) -> None:
    path = environment.write("x.py", "x = 1")
    arguments = [path if argument == "x.py" else argument for argument in arguments]
    error = environment.json(*arguments, "--env", "absent", code=3)["error"]
    assert error["kind"] == "not_found"
    assert "absent" in error["message"]
    assert len(error["message"].splitlines()) <= 2


def test_a_run_is_followed_until_somebody_interrupts(environment: Environment) -> None:
    """The run goes on, and the command says so; the same run id again creates nothing."""
    environment.run("dags", "create", "--file", environment.write("slow.py", DAG.format(name="slow")))
    # At once: the DAG is waited for until it is parsed.
    following = environment.start("dags", "trigger", "slow", "--run-id", "r", "--wait", "--json")
    try:
        assert following.stderr is not None
        for line in following.stderr:
            if " run r: " in line:
                break
        following.send_signal(signal.SIGINT)
        out, err = following.communicate(timeout=60)
    finally:
        following.kill()
    assert following.returncode == 130
    assert "the run goes on; to see it: modalflow runs show slow r" in err
    assert json.loads(out)["error"]["kind"] == "interrupted"

    assert environment.json("dags", "trigger", "slow", "--run-id", "r") == {
        "dag_id": "slow",
        "run_id": "r",
        "created": False,
    }
    assert environment.json("runs", "show", "slow", "r")["state"] in ("queued", "running")
    assert [run["run_id"] for run in environment.json("runs", "list", "--dag-id", "slow")["runs"]] == ["r"]
    assert "slow" in environment.run("runs", "list").stdout
    assert environment.json("costs", "--by", "run")["estimate"] is True
    assert "Tasks: about $" in environment.run("costs").stdout
    assert environment.run("dags", "unpause", "slow").stdout == "slow: active (unchanged)\n"
    missing = environment.json("dags", "pause", "slow", "slo", code=3)["error"]["message"]
    assert "DAG slo does not exist; did you mean slow? (nothing was changed)" in missing
    late = environment.run("dags", "trigger", "slow", "--run-id", "r", "--wait", "--timeout", "1", code=1)
    assert "has not ended within 1 s" in late.stderr
    assert "the run goes on; to see it: modalflow runs show slow r" in late.stderr
    environment.run("dags", "pause", "slow")
    paused = environment.run("dags", "trigger", "slow", "--run-id", "r", "--wait", code=1)
    assert "DAG slow is paused, and so is run r. To let it go on: modalflow dags unpause" in paused.stderr
    noted = environment.run("dags", "trigger", "slow", "--run-id", "r")
    assert "to let it go on: modalflow dags unpause" in noted.stderr


def test_a_dag_whose_file_has_an_import_error_is_waited_for_and_told(environment: Environment) -> None:
    path = environment.write("typo.py", "from airflow.sdk import dagg  # airflow dag\n")
    environment.run("dags", "create", "--file", path, "--no-check")
    told = environment.json("dags", "trigger", "typo", code=3)["error"]["message"]
    assert "DAG typo does not exist" in told
    assert "typo.py has an import error: ImportError: cannot import name 'dagg'" in told


def test_clean_shows_asks_and_removes_what_nobody_needs(environment: Environment) -> None:
    volume = modal.Volume.from_name(f"airflow-vol-{environment.name}")
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"gone"), "/logs/dag_id=gone/run_id=r/task_id=t/attempt=1.log.x")
    clean = ("clean", "--older-than", "1h", "--what", "logs,xcom,venvs")
    assert "nothing was changed" in environment.run(*clean, answer="n\n", code=1).stderr
    cleaned = environment.json(*clean, "--yes")
    assert (cleaned["outcome"], cleaned["freed_bytes"], cleaned["problems"]) == ("cleaned", 4, [])
    assert [item["removed"] for item in cleaned["kinds"]["logs"]] == [True]
    assert environment.json("clean", "--dry-run")["found_bytes"] == 0
    assert "there are logs, xcom" in environment.run("clean", "--what", "cache", code=2).stderr
    assert "such as 30d" in environment.run("clean", "--older-than", "soon", code=2).stderr


def test_destroy_asks_and_may_keep_the_volume(environment: Environment) -> None:
    other = Environment(f"{environment.name}-2", environment.server, environment.config, environment.folder)
    modal.Volume.from_name(f"airflow-vol-{other.name}", version=2, create_if_missing=True).hydrate()
    wrong = other.run("destroy", answer="something\n", code=2)
    assert "nothing was removed" in wrong.stderr
    kept = other.run("destroy", "--keep-volume", answer=f"{other.name}\n")
    assert "volume kept" in kept.stderr
    assert other.json("destroy", "--yes")["steps"]["volume"] == "deleted"
    assert other.json("destroy", "--yes", code=3)["error"]["kind"] == "not_found"

"""An environment under test: commands as a person types them, and what Modal shows."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from airflow_provider_modal.names import ResourceNames
from local_modal.testing import LocalModal, wait_until
from tests.acceptance.modal_target import PATIENCE, client_environ

MODALFLOW = str(Path(sys.executable).with_name("modalflow"))
FINISHED = ("success", "failed")


@dataclass
class Deployment:
    """One environment.

    :param local: the local Modal server that it is on; None on Modal itself.
    """

    name: str
    local: LocalModal | None
    config: Path

    @property
    def modal(self) -> LocalModal:
        """The local Modal server, which can make containers fail; tests that use it are marked ``faults``."""
        assert self.local is not None, "this test needs @pytest.mark.faults"
        return self.local

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a person who works with it."""
        return {**os.environ, **client_environ(self.local), "MODALFLOW_ENV": self.name}

    def modalflow(
        self, *arguments: str, code: int = 0, timeout: float = 400
    ) -> subprocess.CompletedProcess[str]:
        """Run a command and check its exit code."""
        return run([MODALFLOW, *arguments], self.environ, code=code, timeout=timeout * PATIENCE)

    def json(self, *arguments: str) -> Any:
        """Run a command with ``--json`` and return what it printed."""
        return json.loads(self.modalflow(*arguments, "--json").stdout)

    def add_dag(self, path: Path, *dag_ids: str) -> None:
        """Upload a DAG file and wait until its DAGs are known."""
        self.modalflow("dags", "create", "--file", str(path))

        def known() -> bool:
            listed = self.json("dags", "list")
            assert not listed["import_errors"], listed["import_errors"]
            return set(dag_ids) <= {dag["dag_id"] for dag in listed["dags"]}

        wait_until(known, 240 * PATIENCE, f"the DAGs {dag_ids} are known")

    def trigger(self, dag_id: str) -> str:
        """Trigger a DAG and return the run id."""
        run_id = f"test_{secrets.token_hex(4)}"
        self.modalflow("dags", "trigger", dag_id, "--run-id", run_id)
        return run_id

    def show(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return a run as ``runs show --json`` tells it."""
        shown: dict[str, Any] = self.json("runs", "show", dag_id, run_id)
        return shown

    def finished(self, dag_id: str, run_id: str, timeout: float = 300) -> dict[str, Any]:
        """Wait for a run's end and return it."""
        return wait_until(
            lambda: run if (run := self.show(dag_id, run_id))["state"] in FINISHED else None,
            timeout * PATIENCE,
            f"{dag_id} {run_id} has ended",
        )

    def containers(self) -> set[str]:
        """The task ids of its live containers, as Modal's own command line lists them."""
        command = [sys.executable, "-m", "modal", "container", "list", "--json"]
        listed = json.loads(run(command, self.environ).stdout)
        # The names of the columns differ between versions of modal.
        rows = [[str(value) for value in row.values()] for row in listed]
        app = ResourceNames(self.name).app
        return {value for row in rows if app in row for value in row if value.startswith("ta-")}

    def clean_up(self) -> None:
        """Leave nothing in an account; a local server goes away with all that it has."""
        if self.local is None:
            subprocess.run([MODALFLOW, "destroy", "--yes"], env=self.environ, timeout=300, check=False)

    def kill_container(self, task_id: str) -> None:
        """Kill a container's entry process, as the out-of-memory killer would."""
        self.modal.control("kill", task_id=task_id)


def run(
    command: list[str], environ: Mapping[str, str], *, code: int = 0, timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """Run a command and check its exit code; what it said is part of a failure's message."""
    done = subprocess.run(
        command, env=dict(environ), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == code, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def write_config(path: Path, database_url: str, **sections: Mapping[str, Any]) -> Path:
    """Write a config.yaml for a small machine."""
    config: dict[str, Any] = {
        "database": {"connection_string": database_url},
        "scheduler": {"interval_seconds": 10},
        "executor": {"parallelism": 8},
        "workers": {"default": {"max_containers": 3, "scaledown_window": 120}},
    }
    path.write_text(yaml.safe_dump({**config, **sections}))
    return path

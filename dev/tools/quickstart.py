"""From a clean clone to a DAG run on Modal functions, everything on this machine.

Starts PostgreSQL and a local Modal server, creates an environment with the ordinary commands, runs the
example DAG and shows what happened. No Modal account, no Docker, no database to install. A second run uses
what the first one made.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from tools import postgres

ROOT = Path(__file__).resolve().parents[2]
ENV = "quickstart"
DAG_ID = "modalflow_quickstart"
DAG_FILE = ROOT / "airflow_provider_modal" / "example_dags" / f"{DAG_ID}.py"
PARSED_WITHIN = 120
"""Seconds after which an uploaded DAG should be known; the first run imports Airflow, which takes a while."""

notes = Console(stderr=True, highlight=False)
"""What a person reads goes to stderr: stdout is for the line of ``--json``."""


class QuickstartError(Exception):
    """A step failed; the text says which and what to look at."""


def main() -> int:
    """Run the quickstart and return its exit code: 0 only if the DAG run succeeded."""
    options = _arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with ExitStack() as stack:
            return _run(options, stack)
    except QuickstartError as error:
        notes.print(f"[bold red]quickstart:[/] {error}")
        return 1
    except KeyboardInterrupt:
        notes.print("\nstopped; everything it made is kept, run it again to go on")
        return 130


def _run(options: argparse.Namespace, stack: ExitStack) -> int:
    began = time.monotonic()
    folder: Path = options.state_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)

    with _step("PostgreSQL"):
        server_url = stack.enter_context(_postgres(folder / "postgres"))
        database_url = _database(server_url)
    with _step("local Modal server"):
        modal_env = stack.enter_context(_local_modal(folder / "modal", options.max_containers))
    environ = {**os.environ, **modal_env, "MODALFLOW_ENV": ENV}
    config = _write_config(folder / "config.yaml", database_url)

    commands = Commands(environ)
    commands.run("create", "--env", ENV, "--config", str(config))
    commands.upload(DAG_FILE)
    _wait_for_dag(commands)
    ready = time.monotonic()

    run_id = f"quickstart__{datetime.now(timezone.utc):%Y%m%dT%H%M%S}_{secrets.token_hex(2)}"
    run = commands.follow(run_id)
    state = run["state"]
    ended = time.monotonic()

    if not options.json:
        _show(run_id, commands, environ)
    seconds = {"seconds": ended - began, "setup_seconds": ready - began, "run_seconds": ended - ready}
    notes.print(
        f"run [bold]{run_id}[/]: {state}; {seconds['setup_seconds']:.1f} s to set up, "
        f"{seconds['run_seconds']:.1f} s from trigger to end"
    )
    if options.json:
        print(
            json.dumps(
                {
                    "dag_id": DAG_ID,
                    "run_id": run_id,
                    "state": state,
                    "tasks": _states(run["tasks"]),
                    **{name: round(value, 2) for name, value in seconds.items()},
                }
            ),
            flush=True,
        )
    if not options.no_wait:
        _go_on_by_hand(folder, modal_env)
        signal.pause()
    return 0 if state == "success" else 1


class Commands:
    """The product's commands, run as a person would, each shown before it runs."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.modalflow = str(Path(sys.executable).with_name("modalflow"))

    def run(self, *arguments: str, accepted: Sequence[int] = (0,)) -> int:
        """Run a command for its output, which goes to stderr, and return its exit code.

        :raises QuickstartError: the exit code is not one of ``accepted``.
        """
        notes.print(f"[bold]$ modalflow {' '.join(arguments)}[/]", soft_wrap=True)
        done = subprocess.run([self.modalflow, *arguments], env=self.environ, stdout=sys.stderr, check=False)
        if done.returncode not in accepted:
            raise QuickstartError(f"'modalflow {arguments[0]}' ended with exit code {done.returncode}")
        return done.returncode

    def upload(self, path: Path) -> None:
        """Upload a DAG file; an older checkout may have uploaded another version of it."""
        if self.run("dags", "create", "--env", ENV, "--file", str(path), accepted=(0, 2)) == 2:
            self.run("dags", "update", "--env", ENV, "--file", str(path))

    def json(self, *arguments: str) -> Any:
        """Run a command with ``--json`` and return what it printed."""
        done = subprocess.run(
            [self.modalflow, *arguments], env=self.environ, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != 0:
            raise QuickstartError(
                f"'modalflow {' '.join(arguments[:2])}' ended with exit code {done.returncode}"
            )
        return json.loads(done.stdout)

    def follow(self, run_id: str) -> dict[str, Any]:
        """Trigger the DAG, follow the run to its end and return it as ``runs show`` tells it."""
        # Exit code 1 is a run that failed, which its state below says as well.
        self.run("dags", "trigger", DAG_ID, "--env", ENV, "--run-id", run_id, "--wait", accepted=(0, 1))
        run: dict[str, Any] = self.json("runs", "show", DAG_ID, run_id, "--env", ENV, "--json")
        return run


def _wait_for_dag(commands: Commands) -> None:
    with _step("waiting for the scheduler to parse the DAG"):
        deadline = time.monotonic() + PARSED_WITHIN
        while True:
            listed = commands.json("dags", "list", "--env", ENV, "--json")
            if any(dag["dag_id"] == DAG_ID for dag in listed["dags"]):
                return
            if listed["import_errors"]:
                raise QuickstartError(f"the DAG has an import error: {listed['import_errors'][0]['error']}")
            if time.monotonic() > deadline:
                raise QuickstartError(
                    f"the scheduler did not parse {DAG_FILE.name} within {PARSED_WITHIN} s; its output is in "
                    "the local Modal server's log"
                )
            time.sleep(0.5)


def _show(run_id: str, commands: Commands, environ: Mapping[str, str]) -> None:
    commands.run("logs", DAG_ID, run_id, "total", "--env", ENV)
    notes.print(f"\nXCom of the task total: [bold]{_xcom(run_id, environ)!r}[/]")


def _xcom(run_id: str, environ: Mapping[str, str]) -> Any:
    os.environ.update(environ)
    from airflow_provider_modal.control.client import ControlClient
    from airflow_provider_modal.names import ResourceNames

    client = ControlClient(ResourceNames(ENV))
    return client.call("xcom.get", dag_id=DAG_ID, run_id=run_id, task_id="total")["value"]


def _go_on_by_hand(folder: Path, modal_env: Mapping[str, str]) -> None:
    exports = "\n".join(f"  export {name}={value}" for name, value in sorted(modal_env.items()))
    notes.print(
        f"\nEverything keeps running until Ctrl-C. In another terminal:\n\n"
        f"  source {Path(sys.executable).parent / 'activate'}\n{exports}\n  export MODALFLOW_ENV={ENV}\n\n"
        f"  modalflow dags list\n  modalflow dags create --file my_dag.py\n"
        f"  modalflow dags trigger my_dag --wait\n\n"
        f"Data: {folder} (delete it to begin anew)",
        soft_wrap=True,
        markup=False,
    )


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    port_file = folder / "port"
    port = int(port_file.read_text()) if port_file.exists() else 0
    with ExitStack() as stack:
        try:
            url = stack.enter_context(postgres.serve(folder, port=port))
        except RuntimeError as error:
            if not port:
                raise QuickstartError(str(error)) from None
            # Somebody else has the port by now; another one is as good, `create` stores the new address.
            url = stack.enter_context(postgres.serve(folder))
        port_file.write_text(url.rpartition(":")[2].partition("/")[0])
        yield url


def _database(server_url: str) -> str:
    import psycopg2
    from psycopg2.errors import DuplicateDatabase

    connection = psycopg2.connect(server_url)
    connection.autocommit = True
    try:
        connection.cursor().execute("CREATE DATABASE airflow")
    except DuplicateDatabase:
        pass  # a former run made it
    finally:
        connection.close()
    return f"{server_url.rpartition('/')[0]}/airflow"


@contextmanager
def _local_modal(state_dir: Path, max_containers: int) -> Iterator[dict[str, str]]:
    """Run the local Modal server and yield the environment of its clients."""
    from local_modal.testing import LocalModal

    with LocalModal(state_dir=state_dir, arguments=["--max-containers", str(max_containers)]) as server:
        notes.print(f"  its containers are {server.mode}; its log is {server.log_path}", soft_wrap=True)
        yield {name: value for name, value in server.env.items() if name.startswith("MODAL_")}


def _write_config(path: Path, database_url: str) -> Path:
    config = {
        "database": {"connection_string": database_url},
        "scheduler": {"interval_seconds": 15},
        "executor": {"parallelism": 8},
        # Every container imports Airflow once, which takes seconds of a core.
        "workers": {"default": {"max_containers": max(2, os.cpu_count() or 2), "scaledown_window": 300}},
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _states(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``{task_id: state}``; a list of states, in map index order, for a mapped task."""
    states: dict[str, Any] = {}
    for task in sorted(tasks, key=lambda task: (task["task_id"], task["map_index"])):
        if task["map_index"] < 0:
            states[task["task_id"]] = task["state"]
        else:
            states.setdefault(task["task_id"], []).append(task["state"])
    return states


@contextmanager
def _step(what: str) -> Iterator[None]:
    began = time.monotonic()
    with notes.status(what):
        yield
    notes.print(f"{what}: ready ({time.monotonic() - began:.1f} s)")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev/quickstart", description=__doc__)
    parser.add_argument(
        "--no-wait", action="store_true", help="end when the run has ended, instead of at Ctrl-C"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one final line of JSON: dag_id, run_id, state, tasks and seconds",
    )
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=ROOT / ".dev" / "quickstart",
        help="where the database and the local Modal server keep their data (default: %(default)s)",
    )
    parser.add_argument(
        "--max-containers",
        type=int,
        default=8,
        help="containers of the local Modal server at most (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

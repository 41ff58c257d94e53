"""An Airflow with schedulers of its own, whose tasks run on Modal: real processes on a real database.

    with Hybrid(folder, server, database_url) as airflow:
        airflow.create()
        airflow.put_dags(path)
        airflow.start_runs([("my_dag", "run-1")])
        scheduler = airflow.start_scheduler()

Nothing here waits for tasks: what became of them is in the database.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import yaml

from airflow_provider_modal.container.processes import die_with_parent
from local_modal.testing import LocalModal, wait_until

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = "airflow_provider_modal.bundles.volume.VolumeDagBundle"
LOCAL_BUNDLE = "airflow.dag_processing.bundles.local.LocalDagBundle"
EXECUTOR = "airflow_provider_modal.executors.ModalExecutor"
STOP_SECONDS = 30.0
_RUNNING = re.compile(r"executor\.running \((\d+)\)")
_QUEUED = re.compile(r"executor\.queued_tasks \((\d+)\)")


def _start(command: Sequence[str], environ: Mapping[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    """Start a process group of its own that ends with this process, however that ends."""
    parent = os.getpid()

    def end_with_parent() -> None:
        # SIGTERM, on which Airflow's processes end their own children.
        die_with_parent(signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    with log_path.open("ab") as log:
        return subprocess.Popen(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )


class Scheduler:
    """One ``airflow scheduler`` process."""

    def __init__(self, environ: Mapping[str, str], log_path: Path) -> None:
        self.log_path = log_path
        command = [sys.executable, "-m", "airflow", "scheduler", "--skip-serve-logs"]
        self.process = _start(command, environ, log_path)

    @property
    def log(self) -> str:
        """Everything that it has written."""
        return self.log_path.read_text(errors="replace")

    def kill(self) -> None:
        """``kill -9``."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it as an operator would; killed if that takes too long."""
        self._signal(signal.SIGTERM)

    def slots(self, timeout: float = 20.0) -> int:
        """Return how many task instances its executor holds, by its own debug dump.

        :raises TimeoutError: it did not answer.
        """
        before = len(_RUNNING.findall(self.log))
        os.kill(self.process.pid, signal.SIGUSR2)
        wait_until(lambda: len(_RUNNING.findall(self.log)) > before, timeout, "the scheduler's debug dump")
        return int(_RUNNING.findall(self.log)[-1]) + int(_QUEUED.findall(self.log)[-1])

    def _signal(self, signum: signal.Signals) -> None:
        if self.process.poll() is not None:
            return
        os.killpg(self.process.pid, signum)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Hybrid:
    """An environment on a local Modal server, and Airflow processes of this machine that use it.

    For comparison, the same Airflow with another executor: without a server there is no environment, and DAGs
    are in ``folder/dags``.

    :param folder: for configuration and logs.
    :param database_url: of a PostgreSQL database, empty or with Airflow's schema.
    :param workers: worker profiles of the environment.
    :param options: Airflow options of all processes, the workers' too, as ``section.option``.
    """

    def __init__(
        self,
        folder: Path,
        server: LocalModal | None,
        database_url: str,
        *,
        env: str = "hybrid",
        workers: Mapping[str, Mapping[str, Any]] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._server = server
        self.database_url = database_url
        self.env = env
        self.workers = workers or {"default": {"max_containers": 8, "scaledown_window": 300}}
        self.options = dict(options or {})
        self.schedulers: list[Scheduler] = []
        self._fernet_key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
        self._jwt_secret = secrets.token_urlsafe(64)
        self._others: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Hybrid:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for scheduler in self.schedulers:
            scheduler.kill()
        for process in self._others:
            # Its children may outlive it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def start(self, name: str, command: Sequence[str], **options: str) -> subprocess.Popen[bytes]:
        """Start another process of this Airflow; it ends with the ``with`` block.

        :param name: of its log.
        """
        process = _start(command, self.environ(**options), self.folder / f"{name}.log")
        self._others.append(process)
        return process

    @property
    def server(self) -> LocalModal:
        """The server that its environment is on."""
        assert self._server is not None, "this Airflow is not on Modal"
        return self._server

    def environ(self, **options: str) -> dict[str, str]:
        """Return the environment of an Airflow process.

        :param options: further ones, as ``section__option``.
        """
        bundle: dict[str, Any] = {
            "name": "modal-volume",
            "classpath": BUNDLE,
            "kwargs": {"environment": self.env},
        }
        if self._server is None:
            bundle.update(classpath=LOCAL_BUNDLE, kwargs={"path": str(self.folder / "dags")})
        settings = {
            "core__executor": EXECUTOR,
            "core__fernet_key": self._fernet_key,
            "core__load_examples": "False",
            "core__dags_are_paused_at_creation": "False",
            "core__dags_folder": str(self.folder / "dags"),
            "database__sql_alchemy_conn": self.database_url.replace("postgresql:", "postgresql+psycopg2:", 1),
            "database__sql_alchemy_conn_async": "",
            "dag_processor__dag_bundle_config_list": json.dumps([bundle]),
            "dag_processor__dag_bundle_storage_path": str(self.folder / "bundles"),
            "logging__base_log_folder": str(self.folder / "logs"),
            "api_auth__jwt_secret": self._jwt_secret,
            "modal__environment": self.env,
            "usage_data_collection__enabled": "False",
            **{option.replace(".", "__"): value for option, value in self.options.items()},
            **options,
        }
        environ = os.environ if self._server is None else self._server.env
        inherited = {name: value for name, value in environ.items() if not name.startswith("AIRFLOW")}
        return {
            **inherited,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "dev"), str(ROOT)]),
            "AIRFLOW_HOME": str(self.folder / "airflow"),
            **{f"AIRFLOW__{name.upper()}": value for name, value in settings.items()},
        }

    def create(self) -> None:
        """Create the environment with the product's command; its own scheduler stays asleep."""
        if self._server is None:
            (self.folder / "dags").mkdir(exist_ok=True)
            self._run([sys.executable, "-m", "airflow", "db", "migrate"])
            return
        config = {
            "database": {"connection_string": self.database_url},
            "scheduler": {"interval_seconds": 86400},
            "workers": {name: dict(profile) for name, profile in self.workers.items()},
            "keys": {"fernet_key": self._fernet_key},
            "airflow": self.options,
        }
        path = self.folder / "config.yaml"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config))
        modalflow = str(Path(sys.executable).with_name("modalflow"))
        self._run([modalflow, "create", "--env", self.env, "--config", str(path)])

    def put_dags(self, *paths: Path) -> None:
        """Put DAG files onto the environment's Volume, with Modal's own command."""
        for path in paths:
            if self._server is None:
                shutil.copy(path, self.folder / "dags")
                continue
            modal = [sys.executable, "-m", "modal", "volume", "put", "--force"]
            self._run([*modal, f"airflow-vol-{self.env}", str(path), f"/dags/{path.name}"])

    def start_runs(self, runs: Iterable[tuple[str, str]]) -> None:
        """Bring the DAGs into the database and create manual runs: (DAG id, run id)."""
        self._run([sys.executable, "-m", "tools.start_runs"], input=json.dumps(list(runs)))

    def start_scheduler(self, **options: str) -> Scheduler:
        """Start one more scheduler."""
        number = len(self.schedulers) + 1
        scheduler = Scheduler(self.environ(**options), self.folder / f"scheduler-{number}.log")
        self.schedulers.append(scheduler)
        return scheduler

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Execute one statement in Airflow's database and return its rows."""
        connection = psycopg2.connect(self.database_url)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def _run(self, command: Sequence[str], input: str | None = None) -> None:
        began = time.monotonic()
        done = subprocess.run(
            command, env=self.environ(), input=input, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        with (self.folder / "commands.log").open("a") as log:
            log.write(f"{time.monotonic() - began:.1f} s: {command}\n{done.stdout}{done.stderr}\n")


@contextmanager
def new_database(server_url: str, name: str) -> Iterator[str]:
    """Yield the URL of a new, empty database; it is dropped afterwards."""
    connection = psycopg2.connect(server_url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{name}"')
            try:
                yield urlsplit(server_url)._replace(path=f"/{name}").geturl()
            finally:
                cursor.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        connection.close()

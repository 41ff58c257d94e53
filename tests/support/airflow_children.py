"""Fixtures that run pieces of the product in children of one zygote, each test with a database of its own.

Airflow takes seconds to import: it is imported once per session, and a child is pointed at the test's
database before it runs anything.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg2
import pytest

from airflow_provider_modal import airflow_settings
from airflow_provider_modal.config import EnvironmentConfig
from airflow_provider_modal.container.zygote import Child, Outcome, Zygote
from airflow_provider_modal.container.zygote_process import resolve
from airflow_provider_modal.volume.dag_versions import DagVersion

ENV = "test"
CHILD_SECONDS = 120.0
RECORD = "TEST_EXECUTOR_RECORD"
"""Environment variable: the file into which the tests' executor records workloads."""


def in_database(url: str, target: str, arguments: dict[str, Any]) -> Any:
    """Run ``target`` in this child with Airflow pointed at the database ``url``."""
    os.environ[airflow_settings.CONNECTION] = url.replace("postgresql:", "postgresql+psycopg2:", 1)
    from airflow import settings

    settings.configure_vars()
    settings.configure_orm()
    return resolve(target)(**arguments)


class AirflowChildren:
    """One test's view: a migrated database and children that use it."""

    def __init__(self, zygote: Zygote, root: Path, url: str) -> None:
        self.zygote = zygote
        self.url = url
        self.root = root
        self.record = root / f"executor-{secrets.token_hex(4)}.jsonl"
        self.environ = {RECORD: str(self.record)}

    def spawn(self, target: str, environ: Mapping[str, str] | None = None, **arguments: Any) -> Child:
        """Start a child that runs ``target``."""
        request = {"url": self.url, "target": target, "arguments": arguments}
        return self.zygote.spawn(f"{__name__}:in_database", request, {**self.environ, **(environ or {})})

    def run(self, target: str, environ: Mapping[str, str] | None = None, **arguments: Any) -> Any:
        """Run ``target`` in a child and return its result."""
        outcome = self.spawn(target, environ, **arguments).wait(CHILD_SECONDS)
        assert outcome is not None, f"{target} did not end within {CHILD_SECONDS:g} s"
        assert outcome.error is None, outcome.error
        return outcome.result

    def outcome(self, target: str, environ: Mapping[str, str] | None = None, **arguments: Any) -> Outcome:
        """Run ``target`` in a child and return how it ended."""
        outcome = self.spawn(target, environ, **arguments).wait(CHILD_SECONDS)
        assert outcome is not None
        return outcome

    def dag_version(self, files: Mapping[str, str]) -> str:
        """Put a DAG version onto local disk, as the lock holder does, and return its digest."""
        version = DagVersion.of({path: text.encode().hex() for path, text in files.items()})
        folder = self.root / "modalflow" / "dag-versions" / version.digest
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        folder.mkdir(parents=True, exist_ok=True)
        return version.digest

    def parse(
        self,
        files: Mapping[str, str],
        *,
        unchanged: list[str] | None = None,
        per_file: float = 2.0,
        phase: float = 30.0,
        environ: Mapping[str, str] | None = None,
    ) -> Any:
        """Run the parse phase on a DAG version with these files."""
        digest = self.dag_version(files)
        return self.run(
            "airflow_provider_modal.scheduler.run:parse",
            {"MODALFLOW_DAG_VERSION": digest, **(environ or {})},
            digest=digest,
            unchanged=unchanged or [],
            per_file=per_file,
            phase=phase,
        )

    def schedule(self, max_seconds: float = 30.0, environ: Mapping[str, str] | None = None) -> Any:
        """Run the scheduling phase."""
        return self.run(
            "airflow_provider_modal.scheduler.run:main", environ, env=ENV, max_seconds=max_seconds
        )

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Execute one statement in the database and return its rows."""
        with self.connection() as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """Open an autocommit connection to the database."""
        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        try:
            yield connection
        finally:
            connection.close()

    def handed_over(self) -> list[str]:
        """Return what the test's executor was given: ``dag/run/task/map index/try``."""
        if not self.record.exists():
            return []
        return [json.loads(line) for line in self.record.read_text().splitlines()]


@pytest.fixture(scope="session")
def _airflow_zygote() -> Iterator[tuple[Zygote, Path]]:
    root = Path(tempfile.mkdtemp(prefix="modalflow-children-"))
    config = EnvironmentConfig(connection_string="")
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        **airflow_settings.function_environment(config, ENV, "scheduler"),
        airflow_settings.CONNECTION: "postgresql+psycopg2://nobody@127.0.0.1:1/nothing",
        "AIRFLOW__API_AUTH__JWT_SECRET": "a-signing-key-of-the-tests",
        "AIRFLOW__CORE__FERNET_KEY": "",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "4",
        "TMPDIR": str(root),
    }
    with mock.patch.dict(os.environ, environ, clear=True), mock.patch.object(tempfile, "tempdir", str(root)):
        airflow_settings.apply()
        os.environ["AIRFLOW__CORE__EXECUTOR"] = "tests.support.executors.RecordingExecutor"
        zygote = Zygote.start("airflow_provider_modal.scheduler.af3:warm_up")
    try:
        zygote.ready()
        yield zygote, root
    finally:
        zygote.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def airflow_children(_airflow_zygote: tuple[Zygote, Path], airflow_database: str) -> AirflowChildren:
    """Children with Airflow imported, on a database of this test's own."""
    zygote, root = _airflow_zygote
    return AirflowChildren(zygote, root, airflow_database)


def trigger(dag_id: str, run_id: str) -> None:
    """Create a manual DAG run; to be run in a child."""
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.utils.types import DagRunTriggeredByType

    trigger_dag(dag_id=dag_id, run_id=run_id, triggered_by=DagRunTriggeredByType.TEST)


def health() -> str:
    """Return what Airflow's health check says, as JSON; to be run in a child."""
    from airflow.api.common.airflow_health import get_airflow_health

    return json.dumps(get_airflow_health())


def trigger_run(children: AirflowChildren, dag_id: str, run_id: str) -> None:
    """Create a manual DAG run in the test's database."""
    children.run(f"{__name__}:trigger", dag_id=dag_id, run_id=run_id)


def push(dag_id: str, run_id: str, values: dict[str, Any]) -> None:
    """Store XComs of task ``fails_once``, and a ``date``, as a supervisor does; to be run in a child."""
    from datetime import datetime, timezone

    from airflow.models.xcom import XComModel
    from airflow.sdk.serde import serialize

    for key, value in {**values, "date": datetime(2025, 1, 2, tzinfo=timezone.utc)}.items():
        XComModel.set(
            key=key,
            value=serialize(value),
            dag_id=dag_id,
            task_id="fails_once",
            run_id=run_id,
            serialize=False,
        )

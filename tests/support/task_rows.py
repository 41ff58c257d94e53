"""The rows of task instances in a real database, which this process's Airflow uses as well."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import psycopg2
import pytest


class Rows:
    """The task instance d.t in a real database, written and read beside the executor."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def task(self, state: str | None, external_id: str | None, **values: Any) -> None:
        from airflow.models.taskinstance import TaskInstance

        columns = {
            "dag_id": "d",
            "task_id": "t",
            "run_id": "r",
            "try_number": 1,
            "max_tries": 0,
            "pool": "default_pool",
            "priority_weight": 1,
            "operator": "PythonOperator",
            "state": state,
            "external_executor_id": external_id,
            "queued_by_job_id": 1,
            "queued_dttm": datetime.now(timezone.utc),
            **values,
        }
        insert_row(TaskInstance, columns)

    def callback(self, state: str) -> str:
        """Add the callback of a missed deadline; return its id."""
        from airflow.models.callback import Callback

        callback_id = uuid.uuid4()
        columns = {
            "id": callback_id,
            "type": "executor",
            "fetch_method": "import_path",
            "data": {"path": "alerts.late", "kwargs": {}, "dag_run_id": 1, "dag_id": "d"},
            "state": state,
            "priority_weight": 1,
            "created_at": datetime.now(timezone.utc),
        }
        insert_row(Callback, columns)
        return str(callback_id)

    def now(self, *columns: str) -> tuple[Any, ...]:
        [row] = self.run(f"SELECT {', '.join(columns)} FROM task_instance")
        return row

    def clear(self) -> None:
        self.run(
            "TRUNCATE task_instance, task_instance_history, log, callback, connection_test_request CASCADE"
        )
        self.run("DELETE FROM job WHERE id <> 1")


def insert_row(model: Any, columns: dict[str, Any]) -> None:
    """Add a row to the table of one of Airflow's models."""
    from airflow import settings
    from sqlalchemy import insert

    with settings.engine.begin() as connection:
        connection.execute(insert(model.__table__).values(columns))


@pytest.fixture(scope="module")
def database(postgres_url: str, _airflow_template: str) -> Iterator[Rows]:
    """A database of this module's, with a DAG run in it; this process's Airflow uses it."""
    from airflow import settings
    from airflow.jobs.job import Job
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.dagrun import DagRun

    name = f"executor_{uuid.uuid4().hex[:8]}"
    server = psycopg2.connect(postgres_url)
    server.autocommit = True
    server.cursor().execute(f"CREATE DATABASE {name} TEMPLATE {_airflow_template}")
    url = f"{postgres_url.rpartition('/')[0]}/{name}"
    with pytest.MonkeyPatch.context() as patch:
        connection = url.replace("postgresql:", "postgresql+psycopg2:", 1)
        patch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", connection)
        patch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC", "")
        _use(settings)
        insert_row(DagBundleModel, {"name": "modal-volume"})
        limits = {
            "max_active_tasks": 16,
            "max_consecutive_failed_dag_runs": 0,
            "has_task_concurrency_limits": False,
        }
        insert_row(DagModel, {"dag_id": "d", "bundle_name": "modal-volume", **limits})
        run = {"id": 1, "dag_id": "d", "run_id": "r", "run_type": "manual", "state": "running"}
        insert_row(DagRun, {**run, "run_after": datetime.now(timezone.utc)})
        insert_row(Job, {"id": 1, "job_type": "SchedulerJob", "state": "success"})
        rows = Rows(url)
        rows.run("SELECT setval('job_id_seq', 1)")
        yield rows
    _use(settings)
    server.cursor().execute(f"DROP DATABASE {name} WITH (FORCE)")
    server.close()


@pytest.fixture
def rows(database: Rows) -> Rows:
    """The module's database without a task instance."""
    database.clear()
    return database


def _use(settings: Any) -> None:
    settings.dispose_orm(do_log=False)
    settings.configure_vars()
    settings.configure_orm()

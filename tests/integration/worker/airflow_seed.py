"""Puts a DAG into Airflow's database and queues its tasks, as a scheduler would; runs below a zygote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow_provider_modal.names import BUNDLE_NAME


def add_dags(folder: str, version: str | None = None) -> list[str]:
    """Parse a folder and store its DAGs, as the DAG processor does; return their ids."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db

    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(folder, bundle_path=Path(folder), bundle_name=BUNDLE_NAME)
    assert not bag.import_errors, bag.import_errors
    sync_bag_to_db(bag, BUNDLE_NAME, version)
    return sorted(bag.dags)


def queue_task(dag_id: str, task_id: str, run_id: str) -> str:
    """Create a run and queue one of its tasks; return the workload as JSON."""
    from airflow.executors.workloads import ExecuteTask
    from airflow.models.dagbag import DBDagBag
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState, TaskInstanceState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    try:
        from airflow.sdk import timezone
    except ImportError:
        from airflow.utils import timezone

    with create_session() as session:
        dag = DBDagBag().get_latest_version_of_dag(dag_id, session=session)
        assert dag is not None
        now = timezone.utcnow()
        run = dag.create_dagrun(
            run_id=run_id,
            logical_date=now,
            data_interval=(now, now),
            run_after=now,
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.RUNNING,
            start_date=now,
            session=session,
        )
        instance = run.get_task_instance(task_id, session=session)
        assert instance is not None
        instance.state = TaskInstanceState.QUEUED
        instance.try_number = 1
        session.flush()
        return ExecuteTask.make(instance).model_dump_json()


def queue_connection_test(conn_type: str, extra: str) -> str:
    """Ask for the test of a connection, as the API server does; return the workload as JSON."""
    from airflow.executors.workloads import TestConnection
    from airflow.models.connection_test import ConnectionTestRequest, ConnectionTestState
    from airflow.utils.session import create_session

    with create_session() as session:
        test = ConnectionTestRequest(connection_id="tested", conn_type=conn_type, extra=extra)
        test.state = ConnectionTestState.QUEUED
        session.add(test)
        session.flush()
        return TestConnection.make(
            connection_test_id=test.id, connection_id="tested", timeout=20
        ).model_dump_json()


def connection_test_row(test_id: str) -> dict[str, Any]:
    """Return what the database says of a connection test."""
    from uuid import UUID

    from airflow.models.connection_test import ConnectionTestRequest
    from airflow.utils.session import create_session

    with create_session() as session:
        row = session.get(ConnectionTestRequest, UUID(test_id))
        assert row is not None
        return {"state": str(row.state), "message": row.result_message}


def supervise_into(path: str, workload: str) -> dict[str, Any]:
    """Run a task with this process's standard output in a file."""
    from airflow_provider_modal.worker import af3

    with open(path, "w") as file:
        os.dup2(file.fileno(), 1)
    return af3.supervise(workload)


def supervise_with_rare_heartbeats(seconds: int, workload: str) -> dict[str, Any]:
    """Run a task whose supervisor sleeps for so long unless it is woken."""
    from airflow.sdk.execution_time import supervisor

    from airflow_provider_modal.worker import af3

    supervisor.MIN_HEARTBEAT_INTERVAL = seconds
    supervisor.HEARTBEAT_TIMEOUT = 2 * seconds
    return af3.supervise(workload)


def task_row(dag_id: str, task_id: str, run_id: str) -> dict[str, Any]:
    """Return what the database says of a task instance."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        row = session.scalars(
            select(TaskInstance).filter_by(dag_id=dag_id, task_id=task_id, run_id=run_id)
        ).one()
        return {"state": row.state, "hostname": row.hostname, "pid": row.pid, "try_number": row.try_number}


def set_task_row(dag_id: str, task_id: str, run_id: str, values: dict[str, Any]) -> None:
    """Change what the database says of a task instance."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import update

    with create_session() as session:
        session.execute(
            update(TaskInstance).filter_by(dag_id=dag_id, task_id=task_id, run_id=run_id).values(values)
        )

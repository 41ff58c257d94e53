"""The first ten minutes: create, upload, trigger, follow, read, destroy; with and without namespaces."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_modal import example_dags
from local_modal.testing import wait_until
from tests.acceptance.conftest import new_database
from tests.acceptance.deployment import Deployment, run, write_config
from tests.acceptance.modal_target import MODES, environment_name, modal_server

DAG_ID = "modalflow_quickstart"
DAG_FILE = Path(example_dags.__file__).with_name(f"{DAG_ID}.py")


@pytest.fixture(scope="module", params=MODES)
def deployment(
    request: pytest.FixtureRequest, acceptance_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """An environment that is created by the test, per kind of containers."""
    folder = tmp_path_factory.mktemp(request.param)
    # Each environment has a database of its own.
    with (
        new_database(acceptance_database, f"first_{secrets.token_hex(3)}") as database,
        modal_server(folder / "modal", request.param) as local,
    ):
        assert local is None or local.mode == request.param
        deployment = Deployment(
            environment_name("first"), local, write_config(folder / "config.yaml", database)
        )
        try:
            yield deployment
        finally:
            deployment.clean_up()


def test_from_create_to_destroy(deployment: Deployment) -> None:
    created = deployment.modalflow("create", "--config", str(deployment.config))
    assert "fernet" in (created.stdout + created.stderr).lower()
    again = deployment.modalflow("create", "--config", str(deployment.config))
    assert "unchanged" in again.stdout + again.stderr

    deployment.add_dag(DAG_FILE, DAG_ID)
    assert "unchanged" in deployment.modalflow("dags", "create", "--file", str(DAG_FILE)).stdout

    run_id = "manual__first"
    deployment.modalflow("dags", "trigger", DAG_ID, "--run-id", run_id, "--wait")
    shown = deployment.show(DAG_ID, run_id)
    assert shown["state"] == "success"
    states = {(task["task_id"], task["map_index"]): task for task in shown["tasks"]}
    assert {task["state"] for task in states.values()} == {"success"}
    assert {index for task_id, index in states if task_id == "square"} == {0, 1, 2}
    assert states["flaky", -1]["try_number"] == 2
    assert [attempt["state"] for attempt in states["flaky", -1]["history"]] == ["failed"]

    workers = {task["host"] for task in states.values()}
    assert all(worker.startswith("ta-") for worker in workers)
    assert deployment.containers() - workers, "the scheduler's container is none of the workers'"
    if deployment.local:
        assert not workers & {task["task_id"] for task in deployment.local.tasks("scheduler_run")}

    log = deployment.modalflow("logs", DAG_ID, run_id, "total").stdout
    assert "the sum of the squares is 14" in log
    assert f"MODAL_TASK_ID={states['total', -1]['host']}" in log
    assert "the total is 14" in deployment.modalflow("logs", DAG_ID, run_id, "shell").stdout
    assert "fails on purpose" in deployment.modalflow("logs", DAG_ID, run_id, "flaky", "--try", "1").stdout

    airflow = str(Path(deployment_python()).with_name("airflow"))
    listed = run(
        [airflow, "modalflow", "dags", "list", "--env", deployment.name, "--json"], deployment.environ
    ).stdout
    assert any(dag["dag_id"] == DAG_ID for dag in json.loads(listed[listed.index("{") :])["dags"])

    deployment.modalflow("destroy", "--yes")
    missing = deployment.modalflow("dags", "list", code=3)
    assert deployment.name in missing.stderr and "create" in missing.stderr
    wait_until(lambda: not deployment.containers(), 120, "its containers are gone")


def deployment_python() -> str:
    """The interpreter of the commands."""
    import sys

    return sys.executable

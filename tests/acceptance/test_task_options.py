"""DAGs whose tasks ask for resources, Secrets, packages and a second start; some for what can't be had."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modal.names import ResourceNames
from tests.acceptance.deployment import Deployment, run
from tests.acceptance.recorder import Recorder

pytestmark = pytest.mark.faults(reason="it looks at containers and kills one")


@pytest.fixture(scope="module")
def asking(deployment: Deployment, recorder: Recorder, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of the DAG in ``dags/asking.py``."""
    source = (Path(__file__).parent / "dags" / "asking.py").read_text()
    path = tmp_path_factory.mktemp("dags") / "asking.py"
    path.write_text(source.replace("RECORDER_PORT", str(recorder.port)))
    put_packaged(deployment, recorder, path.parent / "packaged")
    deployment.add_dag(path, "asking", "packaged")
    return "asking"


def put_packaged(deployment: Deployment, recorder: Recorder, folder: Path) -> None:
    """Put ``dags/packaged`` with its requirements.txt onto the Volume, as people do without our commands."""
    shutil.copytree(Path(__file__).parent / "dags" / "packaged", folder)
    dag = folder / "packaged.py"
    dag.write_text(dag.read_text().replace("RECORDER_PORT", str(recorder.port)))
    volume = ResourceNames(deployment.name).volume
    command = [sys.executable, "-m", "modal", "volume", "put", volume, str(folder), "/dags/packaged"]
    run(command, deployment.environ)


def test_each_task_gets_what_it_asks_for_or_a_reason(
    deployment: Deployment, recorder: Recorder, asking: str
) -> None:
    run_id = deployment.trigger(asking)
    (first,) = recorder.wait_for(f"{run_id}:twice")
    deployment.kill_container(first["container"])

    (plain,) = recorder.wait_for(f"{run_id}:plain")
    (equipped,) = recorder.wait_for(f"{run_id}:equipped")
    inherited = {"BASE_TOKEN": "base", "MODALFLOW_ROLE": "worker"}
    assert plain["environ"] == {**inherited, "TEAM_TOKEN": None, "GREETING": None}
    assert equipped["environ"] == {**inherited, "TEAM_TOKEN": "team", "GREETING": "hello"}
    wants = {task["task_id"]: task["wants"] for task in deployment.modal.tasks("execute_task")}
    assert wants[equipped["container"]]["gpu"] == "T4:1"
    assert wants[equipped["container"]]["memory"] == [1024, 3000]
    recorder.release(f"{run_id}:equipped")

    _, second = recorder.wait_for(f"{run_id}:twice", count=2)
    assert second["container"] != first["container"]
    recorder.release(f"{run_id}:twice")

    ended = deployment.finished(asking, run_id)
    tasks: dict[str, dict[str, Any]] = {task["task_id"]: task for task in ended["tasks"]}
    assert {task_id: task["state"] for task_id, task in tasks.items()} == {
        "equipped": "success",
        "plain": "success",
        "twice": "success",
        "mistyped": "failed",
        "unknown_gpu": "failed",
    }
    assert "did you mean 'memory'?" in tasks["mistyped"]["reason"]
    assert "unknown GPU type 'H1000'" in tasks["unknown_gpu"]["reason"]
    assert not recorder.events(f"{run_id}:mistyped") and not recorder.events(f"{run_id}:unknown_gpu")
    assert len(recorder.events(f"{run_id}:equipped")) == len(recorder.events(f"{run_id}:plain")) == 1


@pytest.mark.usefixtures("asking")
def test_tasks_have_the_packages_of_their_folder_and_their_own(
    deployment: Deployment, recorder: Recorder
) -> None:
    run_id = deployment.trigger("packaged")
    ended = deployment.finished("packaged", run_id)
    tasks: dict[str, dict[str, Any]] = {task["task_id"]: task for task in ended["tasks"]}
    assert {task_id: task["state"] for task_id, task in tasks.items()} == {
        "of_the_file": "success",
        "of_its_own": "success",
        "impossible": "failed",
    }
    assert "pydantic <2 was asked for, and Airflow in this image needs" in tasks["impossible"]["reason"]
    said = {task_id: recorder.events(f"{run_id}:{task_id}") for task_id in tasks}
    assert [event["said"] for event in said["of_the_file"]] == ["hello\n"]
    assert [event["said"] for event in said["of_its_own"]] == ["packaged, bright"]
    assert not said["impossible"]

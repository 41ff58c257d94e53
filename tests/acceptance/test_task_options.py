"""A DAG whose tasks ask for resources, Secrets and a second start; two ask for what can't be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.deployment import Deployment
from tests.acceptance.recorder import Recorder

pytestmark = pytest.mark.faults(reason="it looks at containers and kills one")


@pytest.fixture(scope="module")
def asking(deployment: Deployment, recorder: Recorder, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of the DAG in ``dags/asking.py``."""
    source = (Path(__file__).parent / "dags" / "asking.py").read_text()
    path = tmp_path_factory.mktemp("dags") / "asking.py"
    path.write_text(source.replace("RECORDER_PORT", str(recorder.port)))
    deployment.add_dag(path, "asking")
    return "asking"


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

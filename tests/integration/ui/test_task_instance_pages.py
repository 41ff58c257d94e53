"""What does a person see at a task instance in Airflow's UI? Asked of Airflow's own API server."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import modal
import pytest

from airflow_provider_modal import names, wire
from airflow_provider_modal.log import segments
from airflow_provider_modal.volume.files import VolumeFiles
from local_modal.clients import client_environ
from local_modal.testing import LocalModal
from tests.integration.worker.airflow_host import DAGS, AirflowHost, airflow_host, database_of
from tests.support.modal_env import using

DAG = "worker_dag"
HERE = Path(__file__).parent


@dataclass
class Pages:
    """An API server that is asked, and the database that it reads."""

    host: AirflowHost
    env: dict[str, str]
    files: VolumeFiles

    def task(self, task_id: str = "quick", **values: Any) -> str:
        """Add a run with this task instance; return the run's id."""
        run_id = f"run_{secrets.token_hex(4)}"
        self._call("add_task", dag_id=DAG, task_id=task_id, run_id=run_id, **values)
        return run_id

    def ship(self, run_id: str, content: bytes) -> None:
        """Put a segment of the task's log onto the environment's Volume, as its worker does."""
        path = segments.default_log_path(wire.TaskKey(DAG, "quick", run_id, 1))
        prefix = segments.segment_prefix(path, 1.0, "d1")
        self.files.write(segments.segment_path(prefix, 1), content)

    def get(self, *paths: str) -> list[tuple[int, Any]]:
        """Return status and content of pages below a DAG's runs."""
        answers = self._call("get", paths=[f"/api/v2/dags/{DAG}/dagRuns/{path}" for path in paths])
        return [tuple(answer) for answer in answers]

    def _call(self, function: str, **arguments: Any) -> Any:
        outcome = self.host.zygote.spawn(f"airflow_pages:{function}", arguments, self.env).wait(300)
        assert outcome is not None and outcome.error is None, outcome
        return outcome.result


@pytest.fixture(scope="module")
def pages(
    local_modal: LocalModal,
    postgres_url: str,
    _airflow_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pages]:
    resources = names.ResourceNames(f"ui-{uuid.uuid4().hex[:8]}")
    env = {
        **client_environ(local_modal.server_url, local_modal.token),
        "AIRFLOW__CORE__EXECUTOR": "airflow_provider_modal.executors.ModalExecutor",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__MODAL__ENVIRONMENT": resources.env,
    }
    with (
        using(local_modal),
        pytest.MonkeyPatch.context() as patch,
        database_of(postgres_url, _airflow_template) as url,
    ):
        modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
        patch.syspath_prepend(str(HERE))
        with airflow_host(url, tmp_path_factory.mktemp("ui")) as host:
            host.call("add_dags", folder=str(DAGS))
            yield Pages(host, env, VolumeFiles.open(resources))


def test_a_person_finds_the_call_and_the_log_of_a_task(pages: Pages) -> None:
    """Everything in one story, because an API server takes seconds to start."""
    ours = pages.task(
        external_executor_id=f"{uuid.uuid4()}/fc-second",
        try_number=2,
        former={"external_executor_id": f"{uuid.uuid4()}/fc-first", "state": "failed"},
    )
    quick = pages.task(
        external_executor_id=str(uuid.uuid4()),
        state="success",
        events={"modal call submitted": "function call fc-quick"},
    )
    others = [
        pages.task(external_executor_id=value)
        for value in (None, str(uuid.uuid4()), "arn:aws:ecs:eu:1:task/cluster/0f", f"{uuid.uuid4()}/x y")
    ]
    running = pages.task(state="running", external_executor_id=f"{uuid.uuid4()}/fc-running")
    pages.ship(running, b'{"event": "half way", "level": "info", "timestamp": "2026-01-01T00:00:00Z"}\n')
    link = "taskInstances/quick/links"
    *linked, (status, page) = pages.get(
        f"{ours}/{link}",
        f"{ours}/{link}?try_number=1",
        f"{quick}/{link}",
        *(f"{run_id}/{link}" for run_id in others),
        f"{running}/taskInstances/quick/logs/1",
    )
    assert [status for status, _ in linked] == [200] * len(linked)
    urls = [content["extra_links"]["Modal function call"] for _, content in linked]
    known = [f"https://modal.com/id/fc-{call}" for call in ("second", "first", "quick")]
    assert urls == [*known, *[None] * len(others)]
    assert status == 200
    lines = [line["event"] for line in page["content"]]
    assert "half way" in lines
    assert any("fc-running" in line for line in lines)
    assert not any("Could not read served logs" in line for line in lines), "nobody serves them"

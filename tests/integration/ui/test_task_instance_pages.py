"""What does a person see at a task instance in Airflow's UI? Asked of Airflow's own API server."""

from __future__ import annotations

import json
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
from local_modal.testing import LocalModal, wait_until
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
        self.call("add_task", dag_id=DAG, task_id=task_id, run_id=run_id, **values)
        return run_id

    def ship(
        self, run_id: str, *contents: bytes, started: float = 1.0, dispatch: str = "d1", ended: bool = True
    ) -> None:
        """Put segments of the task's log onto the environment's Volume, as its worker does."""
        path = segments.task_log(wire.TaskKey(DAG, "quick", run_id, 1))
        prefix = segments.segment_prefix(path, started, dispatch)
        for number, content in enumerate(contents, 1):
            last = ended and number == len(contents)
            self.files.write(segments.segment_path(prefix, number, last=last), content)

    def get(self, *paths: str, accept: str = "application/json") -> list[tuple[int, Any]]:
        """Return status and content of pages below a DAG's runs."""
        paths = tuple(f"/api/v2/dags/{DAG}/dagRuns/{path}" for path in paths)
        return [tuple(answer) for answer in self.call("get", paths=paths, accept=accept)]

    def call(self, function: str, **arguments: Any) -> Any:
        """Call a function of ``airflow_pages``."""
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
    resources = names.ResourceNames(f"pages-{uuid.uuid4().hex[:8]}")
    env = {
        **client_environ(local_modal.server_url, local_modal.token),
        "AIRFLOW__CORE__EXECUTOR": "airflow_provider_modal.executors.ModalExecutor",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__MODAL__ENVIRONMENT": resources.env,
        # Pages don't depend on what the files on local disk are called.
        "AIRFLOW__LOGGING__LOG_FILENAME_TEMPLATE": "mine/{{ ti.run_id }}-{{ try_number }}.txt",
    }
    with (
        using(local_modal),
        pytest.MonkeyPatch.context() as patch,
        database_of(postgres_url, _airflow_template) as url,
    ):
        modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
        patch.syspath_prepend(str(HERE))
        # Airflow sets up logging once, which is in the zygote here.
        patch.setenv(
            "AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS", "airflow_provider_modal.log.config.LOGGING_CONFIG"
        )
        with airflow_host(url, tmp_path_factory.mktemp("ui")) as host:
            host.call("add_dags", folder=str(DAGS))
            pages = Pages(host, env, VolumeFiles.open(resources))
            pages.call("take_over_log_template")
            yield pages


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


def line(seconds: int, event: str, **values: str) -> bytes:
    """A line of a task's log."""
    record = {
        "timestamp": f"2026-01-01T00:00:{seconds:02}.000000Z",
        "level": "info",
        "event": event,
        **values,
    }
    return json.dumps(record).encode() + b"\n"


def call_that_prints(text: str) -> str:
    """Have a container print something and die; return the function call."""

    def prints(text: str) -> None:
        print(text, flush=True)

    app = modal.App(f"prints-{uuid.uuid4().hex[:8]}")
    function = app.function(serialized=True)(prints)
    with app.run():
        call = function.spawn(text)
        call.get(timeout=120)
        wait_until(
            lambda: any("terminated" in entry.message for entry in call.logs.tail(10)), 60, "the call's log"
        )
    return str(call.object_id)


def test_a_person_reads_logs_in_the_log_tab(pages: Pages) -> None:
    """Everything in one story, because an API server takes seconds to start."""
    printed = "2026-01-01 00:00:01.000100+00:00 [info     ] shipped     [task] a=1\n"
    printed += "2026-01-01 00:00:02.000100+00:00 [info     ] last words  [task] a=1\nRunner terminated"
    call_id = call_that_prints(printed)
    runs = {
        "finished": pages.task(state="success", external_executor_id=f"{uuid.uuid4()}/fc-1"),
        "running": pages.task(state="running", external_executor_id=f"{uuid.uuid4()}/fc-1"),
        "killed": pages.task(state="failed", external_executor_id=f"{uuid.uuid4()}/{call_id}"),
        "never shipped": pages.task(state="failed", external_executor_id=f"{uuid.uuid4()}/{call_id}"),
        "deferred": pages.task(state="deferred", external_executor_id=str(uuid.uuid4())),
        "nothing": pages.task(state="success", external_executor_id=f"{uuid.uuid4()}/fc-1"),
        "elsewhere": pages.task(state="success", executor="LocalExecutor"),
    }
    pages.ship(runs["finished"], line(5, "resumed"), line(6, "done"), started=5.0, dispatch="d2")
    pages.ship(runs["finished"], line(3, "waited"), started=3.0, dispatch="trigger-1-1", ended=False)
    pages.ship(runs["finished"], line(1, "began"), line(2, "def") + b"half a li", b"ne\n", started=1.0)
    pages.ship(runs["running"], line(1, "half way"), ended=False)
    begin = line(0, "Modal container took the task", function_call=call_id)
    pages.ship(runs["killed"], begin + line(1, "shipped"), ended=False)
    pages.ship(runs["killed"], line(40, "out of memory"), started=40.0)
    pages.ship(runs["deferred"], line(1, "began"))
    local = pages.host.root / "logs" / "mine" / f"{runs['elsewhere']}-1.txt"
    local.parent.mkdir(parents=True, exist_ok=True)
    local.write_bytes(line(1, "local"))

    paths = [f"{run_id}/taskInstances/quick/logs/1" for run_id in runs.values()]
    answers = pages.get(*paths, accept="application/x-ndjson")
    assert [status for status, _ in answers] == [200] * len(runs)
    lines = {
        name: [record["event"] for record in records]
        for name, (_, records) in zip(runs, answers, strict=True)
    }
    heads = {name: log[: log.index("::endgroup::")] for name, log in lines.items()}
    logs = {name: log[len(heads[name]) + 1 :] for name, log in lines.items()}
    assert logs["finished"] == ["began", "def", "half a line", "waited", "resumed", "done"]
    assert logs["running"] == ["half way"]
    assert any("fc-1" in source for source in heads["running"])
    assert logs["killed"][:2] == ["Modal container took the task", "shipped"]
    assert [event.partition("  ")[0] for event in logs["killed"][2:]] == [
        "The container was lost before its log was complete. What follows is from Modal's log of "
        f"function call {call_id}.",
        "last words",
        "out of memory",
        "Runner terminated",
    ]
    assert [event.partition("  ")[0] for event in logs["never shipped"]] == [
        "shipped",
        "last words",
        "Runner terminated",
    ]
    assert logs["deferred"] == ["began"]
    assert logs["nothing"] == []
    assert any("No log of this try" in source for source in heads["nothing"])
    assert logs["elsewhere"] == ["local"]
    for name, log in lines.items():
        assert not any("Could not read served logs" in event for event in log), (name, log)

"""Does a queued task run under Airflow's supervisor in a child of the zygote: quickly, once, stoppably?"""

from __future__ import annotations

import json
import re
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from airflow_provider_modal.container.zygote import Child
from airflow_provider_modal.worker import limits
from local_modal.testing import wait_until
from tests.integration.worker.airflow_host import DAGS, AirflowHost, airflow_host, database_of
from tests.support.processes import is_running

DAG = "worker_dag"
SUPERVISE = "airflow_provider_modal.worker.af3:supervise"


class Worker(AirflowHost):
    """A warm zygote beside a database with the test DAG."""

    def queue(self, task_id: str) -> Task:
        run_id = f"run_{secrets.token_hex(4)}"
        return Task(
            self, task_id, run_id, self.call("queue_task", dag_id=DAG, task_id=task_id, run_id=run_id)
        )


@dataclass
class Task:
    worker: Worker
    task_id: str
    run_id: str
    workload: str

    def spawn(self, env: dict[str, str] | None = None, **args: Any) -> Child:
        env = {"RECORD": str(self.record_path), **(env or {})}
        return self.worker.zygote.spawn(SUPERVISE, {"workload": self.workload, **args}, env)

    def run(self, **args: Any) -> dict[str, Any]:
        outcome = self.spawn(**args).wait(60)
        assert outcome is not None and outcome.error is None, outcome
        result: dict[str, Any] = outcome.result
        return result

    @property
    def record_path(self) -> Path:
        return self.worker.root / f"{self.run_id}.record"

    @property
    def records(self) -> list[dict[str, Any]]:
        if not self.record_path.exists():
            return []
        return [json.loads(line) for line in self.record_path.read_text().splitlines()]

    def await_start(self) -> dict[str, Any]:
        return wait_until(lambda: self.records, 30, "the task has started")[0]

    @property
    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = self.worker.call(
            "task_row", dag_id=DAG, task_id=self.task_id, run_id=self.run_id
        )
        return row

    @property
    def log(self) -> str:
        return (self.worker.root / "logs" / json.loads(self.workload)["log_path"]).read_text()


@pytest.fixture(scope="module")
def worker(
    postgres_url: str, _airflow_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    with database_of(postgres_url, _airflow_template) as url:
        with airflow_host(url, tmp_path_factory.mktemp("worker")) as host:
            assert host.call("add_dags", folder=str(DAGS)) == [DAG]
            yield Worker(host.zygote, host.root, url)


def test_task_runs_to_its_end(worker: Worker) -> None:
    task = worker.queue("quick")
    assert task.run(env={"GREETING": "hello"}) == {
        "outcome": "done",
        "reason": None,
        "exit_code": 0,
        "state": "success",
    }
    (record,) = task.records
    assert record["greeting"] == "hello"
    assert record["context"] == "client"
    row = task.row
    assert (row["state"], row["hostname"], row["pid"]) == ("success", "ta-worker", record["pid"])
    assert "printed by the task" in task.log


def test_output_is_in_the_log_once_and_in_the_containers_own_output(worker: Worker) -> None:
    task = worker.queue("quick")
    output = worker.root / "output"
    child = worker.zygote.spawn(
        "airflow_seed:supervise_into",
        {"path": str(output), "workload": task.workload},
        {"RECORD": str(task.record_path)},
    )
    outcome = child.wait(60)
    assert outcome is not None and outcome.result["outcome"] == "done"
    assert task.log.count("printed by the task") == 1
    assert "printed by the task" in output.read_text()
    # In Modal's log of the call a secret is as hidden as in the task's.
    for text in (task.log, output.read_text()):
        assert "the word is ***" in text and "Sup3rSecretWord" not in text


def test_the_end_is_noticed_before_the_next_heartbeat(worker: Worker) -> None:
    # It would be later than this test waits, most times.
    for _ in range(3):
        task = worker.queue("quick")
        child = worker.zygote.spawn(
            "airflow_seed:supervise_with_rare_heartbeats",
            {"seconds": 600, "workload": task.workload},
            {"RECORD": str(task.record_path)},
        )
        outcome = child.wait(60)
        assert outcome is not None and outcome.result["outcome"] == "done"


def test_failed_task_is_done(worker: Worker) -> None:
    task = worker.queue("fails")
    assert task.run()["outcome"] == "done"
    assert task.row["state"] == "failed"
    assert "the task is wrong" in task.log


def test_killed_task_ends_with_a_reason(worker: Worker) -> None:
    task = worker.queue("killed")
    ended = task.run()
    assert ended["outcome"] == "failed" and ended["exit_code"] == -signal.SIGKILL
    assert "killed by signal 9 (SIGKILL)" in ended["reason"]


@pytest.mark.parametrize("state", ["restarting", "success"])
def test_task_that_is_taken_back_while_it_runs_is_done(worker: Worker, state: str) -> None:
    task = worker.queue("stubborn")
    child = task.spawn()
    task.await_start()
    where = {"dag_id": DAG, "task_id": "stubborn", "run_id": task.run_id}
    # As a clear in the UI ("restarting") or a mark does.
    worker.call("set_task_row", **where, values={"state": state})
    outcome = child.wait(60)
    assert outcome is not None and outcome.error is None
    assert outcome.result["outcome"] == "done" and outcome.result["exit_code"] != 0
    assert "took the running task back" in outcome.result["reason"] and state in outcome.result["reason"]
    assert task.row["state"] == state


def test_second_copy_is_obsolete_while_the_first_runs(worker: Worker) -> None:
    task = worker.queue("patient")
    first = task.spawn()
    task.await_start()
    second = task.run()
    assert second["outcome"] == "obsolete" and "running" in second["reason"]
    assert [record["event"] for record in task.records] == ["started"]
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) is not None


def test_copy_of_a_finished_or_unknown_task_is_obsolete(worker: Worker) -> None:
    task = worker.queue("quick")
    task.run()
    again = task.run()
    assert again["outcome"] == "obsolete" and "success" in again["reason"]
    task.workload = re.sub(r'"id":"[^"]+"', '"id":"00000000-0000-7000-8000-000000000001"', task.workload)
    unknown = task.run()
    assert unknown["outcome"] == "obsolete" and "not found" in unknown["reason"]
    assert len(task.records) == 1


def test_lost_container_is_run_again_where_that_is_allowed(worker: Worker) -> None:
    task = worker.queue("quick")
    where = {"dag_id": DAG, "task_id": "quick", "run_id": task.run_id}
    worker.call("set_task_row", **where, values={"state": "running", "hostname": "ta-lost", "pid": 1})
    assert task.run(lost_container="ta-other")["outcome"] == "obsolete"
    assert task.run(lost_container="ta-lost")["outcome"] == "done"
    assert len(task.records) == 1 and task.row["state"] == "success"


def test_sigterm_reaches_on_kill_and_airflow_learns_of_it(worker: Worker) -> None:
    task = worker.queue("patient")
    child = task.spawn()
    task.await_start()
    ending = limits.await_end(child, 0.2, limits.Cancellation(), grace=30)
    assert ending.stopped == "timeout" and not ending.killed
    assert [record["event"] for record in task.records] == ["started", "on_kill", "stopped"]
    assert ending.outcome.result["outcome"] == "done"
    assert task.row["state"] == "failed"
    assert "stopped by on_kill" in task.log


def test_cancellation_kills_what_does_not_stop(worker: Worker) -> None:
    task = worker.queue("stubborn")
    child = task.spawn()
    pid = task.await_start()["pid"]
    ending = limits.await_end(child, 60, limits.Cancellation(requested=True), grace=0.5)
    assert ending.stopped == "cancelled" and ending.killed
    assert not is_running(pid)
    assert task.row["state"] == "running"


def test_user_code_does_not_outlive_its_supervisor(worker: Worker) -> None:
    task = worker.queue("supervisor_killed")
    child = task.spawn()
    pid = task.await_start()["pid"]
    outcome = child.wait(30)
    assert outcome is not None and outcome.signal == signal.SIGKILL
    wait_until(lambda: not is_running(pid), 30, "user code has ended")


def test_database_away_is_told(worker: Worker, postgres_url: str) -> None:
    task = worker.queue("quick")
    admin = psycopg2.connect(postgres_url)
    admin.autocommit = True
    database = worker.database.rpartition("/")[2]
    try:
        admin.cursor().execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
        ended = task.run(env={"AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "1"})
    finally:
        admin.cursor().execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true')
        admin.close()
    assert ended["outcome"] == "not_started"
    assert "could not start the task" in ended["reason"]
    assert not task.records and task.row["state"] == "queued"

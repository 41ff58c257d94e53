"""Does a bounded run of Airflow's scheduler do all there is to do, and end?"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable

import psycopg2

from airflow_provider_modal.scheduler import jobs
from tests.support.airflow_children import ENV, AirflowChildren, trigger_run

CHAIN = """
from datetime import timedelta
from airflow.sdk import DAG, task
from airflow.providers.standard.operators.empty import EmptyOperator
with DAG("chain", schedule=None):
    @task
    def first(): pass
    @task
    def second(): pass
    start, middle = EmptyOperator(task_id="start"), EmptyOperator(task_id="middle")
    start >> EmptyOperator(task_id="also_empty") >> first() >> middle >> second()
"""
RETRY = """
from datetime import timedelta
from airflow.sdk import DAG, task
with DAG("retry", schedule=None):
    @task(retries=1, retry_delay=timedelta(seconds={delay}))
    def fails_once(): pass
    fails_once()
"""
LONG = """
from airflow.sdk import DAG, task
with DAG("long", schedule=None):
    @task
    def lasts(): pass
    lasts()
"""
TOLD_LATE = LONG.replace("lasts", "lasts_told_late")
SCHEDULED = """
from datetime import datetime
from airflow.sdk import DAG, task
with DAG("scheduled", schedule="@daily", start_date=datetime(2024, 1, 1), catchup=False):
    @task
    def hello(): pass
    hello()
"""


def _states(children: AirflowChildren, dag_id: str) -> dict[str, str]:
    return dict(
        children.sql("SELECT task_id, state FROM task_instance WHERE dag_id = %s", dag_id),
        run=children.sql("SELECT state FROM dag_run WHERE dag_id = %s", dag_id)[0][0],
    )


def _until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_chain_completes_in_one_run(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"chain.py": CHAIN})
    trigger_run(airflow_children, "chain", "r1")
    done = airflow_children.schedule()
    assert _states(airflow_children, "chain") == {
        **dict.fromkeys(["start", "also_empty", "first", "middle", "second", "run"], "success")
    }
    assert (done["queued"], done["stopped"], done["running"]) == (2, "idle", 0)
    assert airflow_children.handed_over() == ["chain/r1/first/-1/1", "chain/r1/second/-1/1"]


def test_an_idle_run_ends_at_once(airflow_children: AirflowChildren) -> None:
    done = airflow_children.schedule()
    assert (done["queued"], done["events"], done["stopped"]) == (0, 0, "idle")
    assert done["loops"] <= 2


def test_a_scheduled_dag_gets_its_run(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"scheduled.py": SCHEDULED})
    assert airflow_children.schedule()["queued"] == 1
    assert _states(airflow_children, "scheduled") == {"hello": "success", "run": "success"}


def test_a_dag_whose_run_a_person_ended_goes_on(airflow_children: AirflowChildren) -> None:
    one_at_a_time = SCHEDULED.replace("catchup=False", "catchup=True, max_active_runs=1")
    airflow_children.parse({"scheduled.py": one_at_a_time.replace("hello", "lasts")})
    airflow_children.schedule()
    ended = "UPDATE {} SET state = 'success' WHERE dag_id = 'scheduled' RETURNING run_id"
    [(first,)] = airflow_children.sql(ended.format("dag_run"))
    airflow_children.sql(ended.format("task_instance"))
    airflow_children.schedule()
    active = airflow_children.sql("SELECT run_id FROM dag_run WHERE state IN ('queued', 'running')")
    assert len(active) == 1 and active != [(first,)]


def test_a_retry_within_seconds_is_waited_for(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"retry.py": RETRY.format(delay=2)})
    trigger_run(airflow_children, "retry", "r1")
    done = airflow_children.schedule()
    assert _states(airflow_children, "retry") == {"fails_once": "success", "run": "success"}
    assert done["queued"] == 2


def test_a_retry_in_minutes_is_not_waited_for(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"retry.py": RETRY.format(delay=300)})
    trigger_run(airflow_children, "retry", "r1")
    assert airflow_children.schedule()["stopped"] == "idle"
    assert _states(airflow_children, "retry")["fails_once"] == "up_for_retry"


def test_a_long_task_keeps_no_run_alive_and_is_adopted_by_the_next(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"long.py": LONG})
    trigger_run(airflow_children, "long", "r1")
    first = airflow_children.schedule()
    assert (first["stopped"], first["running"]) == ("idle", 1)
    assert first["seconds"] >= 1.5
    second = airflow_children.schedule()
    assert (second["queued"], second["running"]) == (0, 1)
    assert airflow_children.sql("SELECT queued_by_job_id, external_executor_id FROM task_instance") == [
        (second["job_id"], "call-of-lasts")
    ]


def test_what_the_executor_learns_while_it_ends_is_not_lost(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"long.py": TOLD_LATE})
    trigger_run(airflow_children, "long", "r1")
    done = airflow_children.schedule()
    assert (done["stopped"], done["running"], done["events"]) == ("idle", 1, 1)
    assert airflow_children.sql("SELECT external_executor_id FROM task_instance") == [
        ("call-of-lasts_told_late",)
    ]


def test_time_used_up_is_told(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"chain.py": CHAIN})
    trigger_run(airflow_children, "chain", "r1")
    assert airflow_children.schedule(max_seconds=0.01)["stopped"] == "budget"
    assert airflow_children.schedule()["stopped"] == "idle"
    assert _states(airflow_children, "chain")["run"] == "success"


def test_a_killed_run_is_repaired_by_the_next(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"long.py": LONG})
    trigger_run(airflow_children, "long", "r1")
    child = airflow_children.spawn(
        "airflow_provider_modal.scheduler.run:main", None, env=ENV, max_seconds=30.0
    )
    _until(
        lambda: airflow_children.sql("SELECT 1 FROM task_instance WHERE external_executor_id ~ '^call-of-'")
    )
    os.kill(child.pid, signal.SIGKILL)
    outcome = child.wait(30)
    assert outcome is not None and outcome.signal == signal.SIGKILL
    with airflow_children.connection() as connection:
        assert jobs.end_predecessors(connection, ENV, jobs.SCHEDULER_JOB) == 1
    after = airflow_children.schedule()
    assert (after["queued"], after["running"]) == (0, 1), "it was adopted, not queued again"
    assert airflow_children.sql("SELECT state, try_number FROM task_instance") == [("running", 1)]


def test_deferred_tasks_are_reported(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"long.py": LONG})
    trigger_run(airflow_children, "long", "r1")
    airflow_children.schedule()
    airflow_children.sql("UPDATE task_instance SET state = 'deferred'")
    assert airflow_children.schedule()["deferred"] == 1


def test_job_rows_of_others_are_left_alone(airflow_children: AirflowChildren) -> None:
    airflow_children.sql(
        "INSERT INTO job (job_type, state, hostname, latest_heartbeat, executor_class)"
        " VALUES ('SchedulerJob', 'running', 'elsewhere', now(), NULL),"
        "        ('SchedulerJob', 'running', 'other', now(), 'modalflow:other')"
    )
    with airflow_children.connection() as connection:
        assert jobs.end_predecessors(connection, ENV, jobs.SCHEDULER_JOB) == 0
    assert airflow_children.sql("SELECT DISTINCT state FROM job") == [("running",)]


def test_health_is_green_between_runs(airflow_children: AirflowChildren) -> None:
    done = airflow_children.schedule()
    assert _health(airflow_children)["scheduler"] == "unhealthy"
    with airflow_children.connection() as connection:
        jobs.leave_healthy(connection, ENV, done["job_id"], done["hostname"])
        jobs.leave_healthy(connection, ENV, done["job_id"], done["hostname"])
    assert _health(airflow_children) == dict.fromkeys(("scheduler", "dag_processor", "triggerer"), "healthy")
    assert airflow_children.sql(
        "SELECT job_type, count(*) FROM job WHERE job_type <> 'SchedulerJob' GROUP BY 1 ORDER BY 1"
    ) == [("DagProcessorJob", 1), ("TriggererJob", 1)]


def test_old_job_rows_are_pruned_unless_tasks_need_them(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"long.py": LONG})
    trigger_run(airflow_children, "long", "r1")
    needed = airflow_children.schedule()["job_id"]
    with airflow_children.connection() as connection:
        _old_job(connection, f"modalflow:{ENV}")
        _old_job(connection, "modalflow:other")
        airflow_children.sql("UPDATE job SET latest_heartbeat = now() - interval '2 hours'")
        assert jobs.prune(connection, ENV, jobs.SCHEDULER_JOB) == 1
    left = airflow_children.sql("SELECT id, executor_class FROM job ORDER BY id")
    assert left[0] == (needed, f"modalflow:{ENV}")
    assert [marker for _, marker in left[1:]] == ["modalflow:other"]


def _old_job(connection: psycopg2.extensions.connection, marker: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO job (job_type, state, executor_class) VALUES ('SchedulerJob', 'success', %s)",
            (marker,),
        )


def _health(children: AirflowChildren) -> dict[str, str]:
    health = json.loads(children.run("tests.support.airflow_children:health"))
    return {part: health[part]["status"] for part in ("scheduler", "dag_processor", "triggerer")}

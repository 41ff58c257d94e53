"""Does a whole scheduler run do its steps in order, and is it safe when the lock or the child is lost?"""

from __future__ import annotations

from pathlib import Path

from airflow_provider_modal.db import schema
from airflow_provider_modal.db.connect import application_name
from airflow_provider_modal.db.lock import AdvisoryLock
from airflow_provider_modal.version_compat import airflow_version
from airflow_provider_modal.volume import dag_versions
from local_modal.testing import LocalModal
from tests.support.holder_driver import HolderProcess
from tests.support.modal_env import using
from tests.support.scheduler_app import scheduler_app
from tests.support.scheduler_environment import Environment

SCHEDULED = """
from datetime import datetime
from airflow.sdk import DAG, task
with DAG("{dag_id}", schedule="@daily", start_date=datetime(2024, 1, 1), catchup=False):
    @task
    def {task_id}(): pass
    {task_id}()
"""


def test_a_new_dag_runs_in_the_run_that_parses_it(environment: Environment) -> None:
    environment.ask("upload", files={"a.py": SCHEDULED.format(dag_id="a", task_id="hello")})
    environment.ask("wish")
    done = environment.run()
    assert done["outcome"] == "done", done
    assert done["parse"]["files"] == 1
    assert done["schedule"]["queued"] == 1
    assert environment.sql("SELECT state FROM dag_run") == [("success",)]
    assert environment.ask("take") is None, "the wish is taken by the run"

    again = environment.run()
    assert again["parse"] == {"skipped": "nothing changed"}
    assert again["predecessors"] == 1
    healthy = (
        "SELECT job_type FROM job WHERE state = 'running' AND latest_heartbeat > now() - interval '1 min'"
    )
    assert sorted(environment.sql(healthy)) == [("DagProcessorJob",), ("SchedulerJob",), ("TriggererJob",)]


def test_only_changed_files_are_parsed_by_the_next_run(environment: Environment) -> None:
    files = {f"{name}.py": SCHEDULED.format(dag_id=name, task_id="hello") for name in "abc"}
    environment.ask("upload", files=files)
    assert environment.run()["parse"]["files"] == 3
    environment.ask("upload", files={"b.py": files["b.py"] + "# changed"}, removed=["c.py"])
    assert environment.run()["parse"]["files"] == 1
    assert sorted(environment.sql("SELECT dag_id FROM dag WHERE NOT is_stale")) == [("a",), ("b",)]


def test_damaged_picture_of_the_version_before_keeps_nothing_from_being_parsed(
    environment: Environment,
) -> None:
    files = {f"{name}.py": SCHEDULED.format(dag_id=name, task_id="hello") for name in "ab"}
    environment.ask("upload", files=files)
    environment.run()
    [(parsed,)] = environment.sql("SELECT version FROM dag_bundle")
    environment.ask("overwrite", path=f"{dag_versions.VERSIONS_FOLDER}/{parsed}.json", text="{")
    environment.ask("upload", files={"b.py": files["b.py"] + "# changed"})
    assert environment.run()["parse"]["files"] == 2


def test_run_whose_time_is_up_asks_for_another_one(environment: Environment, local_modal: LocalModal) -> None:
    with using(local_modal), scheduler_app(environment.name) as app:
        environment.ask("wish")
        done = environment.ask("run", max_run_seconds=0.01)
        assert (done["outcome"], done["schedule"]["stopped"]) == ("done", "budget")
        assert app.started() == "hand-over"
        assert app.wish == "hand-over", "the wish of this run was taken, that of the next one is there"


def test_lost_lock_ends_the_working_child_first(environment: Environment) -> None:
    environment.ask("upload", files={"a.py": SCHEDULED.format(dag_id="a", task_id="lasts")})
    environment.begin("run")
    environment.until("SELECT 1 FROM task_instance WHERE external_executor_id ~ '^call-of-'")
    environment.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE application_name = 'modalflow:{environment.name}'"
    )
    done = environment.holder.receive()
    assert done["outcome"] == "lost the lock"
    assert done["schedule"]["error"].startswith("it was killed by signal 9")
    after = environment.run()
    assert (after["outcome"], after["predecessors"], after["schedule"]["running"]) == ("done", 1, 1)


def test_wish_of_a_run_that_finds_a_predecessor_at_work_is_passed_on(
    environment: Environment, local_modal: LocalModal
) -> None:
    """The predecessor may have read the database before the wish was made."""
    with using(local_modal), scheduler_app(environment.name) as app:
        environment.ask("wish")
        with AdvisoryLock(environment.url, application_name=application_name(environment.name)) as lock:
            lock.acquire()
            assert environment.ask("run", patience=0.3)["outcome"] == "locked"
        assert app.started() == app.wish == "the lock was held"


def test_interrupted_run_ends_the_working_child_before_it_gives_up_the_lock(
    environment: Environment,
) -> None:
    environment.ask("upload", files={"a.py": SCHEDULED.format(dag_id="a", task_id="lasts")})
    environment.begin("run")
    environment.until("SELECT 1 FROM task_instance WHERE external_executor_id ~ '^call-of-'")
    environment.holder.interrupt()
    assert environment.holder.receive() == {"interrupted": [True, True]}
    assert environment.run()["outcome"] == "done"


def test_run_beside_another_environment_does_nothing_and_names_it(environment: Environment) -> None:
    environment.ask("wish")
    with AdvisoryLock(environment.url, application_name=application_name("other")) as lock:
        lock.acquire()
        done = environment.run()
    assert done["outcome"] == "locked out"
    assert environment.ask("take") is None, "the wish is taken, so that whoever wakes later is heard"
    assert "environment 'other' schedules on the database" in done["message"]
    assert environment.sql("SELECT * FROM job") == []


def test_child_that_crashes_is_repaired_by_the_next_run(environment: Environment) -> None:
    environment.ask("upload", files={"a.py": SCHEDULED.format(dag_id="a", task_id="hello")})
    environment.sql("ALTER TABLE job RENAME COLUMN unixname TO somewhere_else")
    assert environment.run()["outcome"] == "failed"
    environment.sql("ALTER TABLE job RENAME COLUMN somewhere_else TO unixname")
    assert environment.run()["outcome"] == "done"
    assert environment.sql("SELECT state FROM dag_run") == [("success",)]


def test_run_on_a_schema_of_another_airflow_does_nothing_and_says_what_to_do(
    environment: Environment,
) -> None:
    older = next(iter(schema.installed().known - {schema.installed().head}))
    for revision, sentence in (
        (older, f"of an earlier Airflow; Airflow {airflow_version()} needs"),
        ("fedcba987654", "migrated by a newer Airflow"),
    ):
        environment.sql(f"UPDATE alembic_version SET version_num = '{revision}'")
        environment.ask("wish")
        done = environment.run()
        assert (done["outcome"], revision in done["message"]) == ("not ready", True)
        assert sentence in done["message"]
        assert "modalflow create" in done["message"]
        assert environment.ask("take") is None
    assert environment.sql("SELECT * FROM job") == []


def test_run_that_waited_for_a_migration_looks_at_the_schema_again(environment: Environment) -> None:
    with AdvisoryLock(environment.url, application_name=application_name(environment.name)) as lock:
        lock.acquire()
        environment.begin("run")
        environment.until(
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_stat_activity a%'"
            f" AND application_name = 'modalflow:{environment.name}' AND pid NOT IN"
            " (SELECT pid FROM pg_locks WHERE locktype = 'advisory') "
        )
        environment.sql("UPDATE alembic_version SET version_num = 'fedcba987654'")
    done = environment.holder.receive()
    assert (done["outcome"], "fedcba987654" in done["message"]) == ("not ready", True)


def test_run_on_another_environments_database_does_nothing_and_names_it(
    environment: Environment, holder: HolderProcess, tmp_path: Path
) -> None:
    done = Environment(holder, environment.url, tmp_path / "record").run()
    assert done["outcome"] == "not ready"
    assert f"belongs to environment '{environment.name}'" in done["message"]
    assert environment.sql("SELECT * FROM job") == []


def test_database_without_airflows_tables_is_told(
    holder: HolderProcess, fresh_database: str, tmp_path: Path
) -> None:
    environment = Environment(holder, fresh_database, tmp_path / "record")
    for _ in range(2):
        done = environment.run()
        assert (done["outcome"], "modalflow create" in done["message"]) == ("not ready", True)
        environment.claim()
    assert "Airflow's tables" in done["message"]


def test_unreachable_database_is_told(holder: HolderProcess, tmp_path: Path) -> None:
    url = "postgresql://someone:hidden@127.0.0.1:1/airflow"
    told = Environment(holder, url, tmp_path / "record").run()
    assert told["raised"] == "UnreachableError"
    assert "hidden" not in told["message"]

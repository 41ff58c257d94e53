"""Do the operations behind the command line do what they promise, and tell failures in a sentence?"""

from __future__ import annotations

import json
import secrets
import signal
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
from cryptography.fernet import Fernet

from airflow_provider_modal import airflow_settings, wakeup
from airflow_provider_modal.config import EnvironmentConfig
from airflow_provider_modal.container.zygote import Child, Outcome, Zygote
from airflow_provider_modal.control import operations, provisioning
from airflow_provider_modal.db.connect import application_name, connect, connection_failure
from airflow_provider_modal.db.lock import AdvisoryLock
from airflow_provider_modal.errors import UnreachableError
from airflow_provider_modal.names import ResourceNames
from local_modal.testing import LocalModal
from tests.support.airflow_children import ENV, AirflowChildren, trigger_run
from tests.support.modal_env import using
from tests.support.scheduler_app import scheduler_app

DAG = """
from airflow.sdk import DAG, Param, task
with DAG("{dag_id}", schedule=None, params={{"day": Param(1, type="integer")}}):
    @task(retries=1)
    def fails_once(): pass
    @task
    def hello(n): return n
    fails_once() >> hello.expand(n=[1, 2])
"""


class _InDatabase:
    """A zygote whose children use the test's database."""

    def __init__(self, children: AirflowChildren) -> None:
        self._children = children

    def spawn(self, target: str, args: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Child:
        return self._children.spawn(target, env, **args)


def _ask(children: AirflowChildren, op: str, **args: Any) -> Any:
    answer = operations.handle(_InDatabase(children), op, args)  # type: ignore[arg-type]
    assert answer["ok"], answer
    json.dumps(answer)
    return answer["result"]


def _refusal(children: AirflowChildren, op: str, **args: Any) -> tuple[str, str]:
    answer = operations.handle(_InDatabase(children), op, args)  # type: ignore[arg-type]
    assert not answer["ok"], answer
    return answer["error"]["kind"], answer["error"]["message"]


@pytest.fixture
def children(airflow_children: AirflowChildren, monkeypatch: pytest.MonkeyPatch) -> AirflowChildren:
    _deployed(monkeypatch, airflow_children.url)
    return airflow_children


def _deployed(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    config = EnvironmentConfig(connection_string=url)
    for name, value in airflow_settings.function_environment(config, ENV, "control").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(airflow_settings.CONNECTION, url.replace("postgresql:", "postgresql+psycopg2:", 1))


def test_database_is_described(children: AirflowChildren) -> None:
    result = _ask(children, "claim_database")
    assert result["host"].startswith("127.0.0.1:")
    assert int(result["server_version"].split(".")[0]) >= 13
    assert children.sql("SELECT version_num FROM alembic_version") == [(result["revision"],)]
    assert _ask(children, "check_database") == result


def test_database_that_nobody_claimed_is_not_used(children: AirflowChildren) -> None:
    for op in ("check_database", "migrate"):
        kind, message = _refusal(children, op)
        assert (kind, f"modalflow create --env {ENV}" in message) == ("config", True)


def test_database_of_another_environment_is_left_alone_until_it_is_released(
    children: AirflowChildren, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ask(children, "claim_database")
    monkeypatch.setenv(airflow_settings.ENV_NAME, "other")
    for op in ("check_database", "claim_database", "migrate", "drop_schema", "release_database"):
        kind, message = _refusal(children, op)
        assert kind == "config"
        assert f"belongs to environment {ENV!r}" in message
        assert "DROP TABLE modalflow_environment" in message
    monkeypatch.setenv(airflow_settings.ENV_NAME, ENV)
    assert _ask(children, "release_database") == {"changed": True}
    assert _ask(children, "release_database") == {"changed": False}
    monkeypatch.setenv(airflow_settings.ENV_NAME, "other")
    assert _ask(children, "claim_database")


def test_tables_that_another_airflow_uses_are_taken_only_if_somebody_says_so(
    children: AirflowChildren,
) -> None:
    beats = "INSERT INTO job (job_type, state, hostname, executor_class, latest_heartbeat) VALUES "
    # Left behind by an environment of ours.
    children.sql(f"{beats} ('SchedulerJob', 'running', 'modal', 'modalflow:gone', now())")
    # Long dead, and ended well.
    children.sql(f"{beats} ('SchedulerJob', 'running', 'a', 'LocalExecutor', now() - interval '1 day')")
    children.sql(f"{beats} ('SchedulerJob', 'success', 'b', 'LocalExecutor', now())")
    assert _ask(children, "claim_database")
    _ask(children, "release_database")

    children.sql(f"{beats} ('SchedulerJob', 'running', 'their-host', 'CeleryExecutor', now())")
    kind, message = _refusal(children, "claim_database")
    assert kind == "config"
    assert "used by another Airflow: a SchedulerJob on their-host was heard of" in message
    assert "--take-database" in message
    children.sql("UPDATE job SET state = 'success'")
    children.sql("UPDATE alembic_version SET version_num = '22ed7efa9da2'")
    kind, message = _refusal(children, "claim_database")
    assert kind == "config"
    assert "tables of another Airflow (revision 22ed7efa9da2;" in message and "--take-database" in message
    kind, message = _refusal(children, "drop_schema")
    assert (kind, "does not say yet that it belongs to" in message) == ("config", True)
    assert children.sql("SELECT to_regclass('modalflow_environment') IS NULL, to_regclass('job')") == [
        (True, "job")
    ]

    assert not _ask(children, "claim_database", take=True)["schema_current"]
    assert _ask(children, "claim_database"), "it is the environment's own now"


def test_values_that_the_fernet_key_does_not_fit_are_counted(
    children: AirflowChildren, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = Fernet.generate_key(), Fernet.generate_key()
    word = Fernet(theirs).encrypt(b"word").decode()
    children.sql(
        "INSERT INTO connection (conn_id, conn_type, password, is_encrypted, extra, is_extra_encrypted) "
        f"VALUES ('c', 'http', '{word}', true, '{word}', true), ('plain', 'http', 'word', false, '', true)"
    )
    children.sql(f"INSERT INTO variable (key, val, is_encrypted) VALUES ('v', '{word}', true)")
    for keys, count in ((ours, 3), (theirs, 0), (ours + b"," + theirs, 0)):
        monkeypatch.setenv(airflow_settings.FERNET_KEY, keys.decode())
        assert _ask(children, "claim_database")["unreadable"] == count


def test_mark_of_the_owner_outlives_a_reset_of_airflows_tables(children: AirflowChildren) -> None:
    _ask(children, "claim_database")
    children.run("airflow.utils.db:resetdb", skip_init=True)
    assert _ask(children, "check_database")["revision"] is None


def test_check_database_names_the_environment_that_has_it(children: AirflowChildren) -> None:
    with AdvisoryLock(children.url, application_name=application_name("other")) as lock:
        lock.acquire()
        kind, message = _refusal(children, "check_database")
    assert kind == "failed"
    assert "environment 'other' schedules on the database" in message


def test_check_database_is_not_disturbed_by_the_own_scheduler(children: AirflowChildren) -> None:
    with AdvisoryLock(children.url, application_name=application_name(ENV)) as lock:
        lock.acquire()
        assert _ask(children, "claim_database")["server_version"]


def test_unreachable_database_is_told_without_its_password(
    children: AirflowChildren, monkeypatch: pytest.MonkeyPatch
) -> None:
    _deployed(monkeypatch, "postgresql://someone:hidden-word@127.0.0.1:1/airflow")
    kind, message = _refusal(children, "check_database")
    assert kind == "unreachable"
    assert "127.0.0.1:1" in message
    assert "hidden-word" not in message


def test_a_database_that_goes_away_is_unreachable_whoever_notices(
    children: AirflowChildren, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cutting:
        """A zygote that finds its parent's connections cut."""

        def spawn(self, target: str, args: Mapping[str, Any], env: Any = None) -> Child:
            children.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND starts_with(application_name, 'modalflow:')"
            )
            return children.spawn(target, env, **args)

    _ask(children, "claim_database")
    answer = operations.handle(Cutting(), "migrate", {})  # type: ignore[arg-type]
    assert answer["error"]["kind"] == "unreachable", answer
    assert "can't be reached" in answer["error"]["message"]

    away = "postgresql://someone:hidden-word@127.0.0.1:1/airflow"
    _deployed(monkeypatch, away)
    children.url = away
    kind, message = _refusal(children, "dags.list")
    assert kind == "unreachable"
    assert "127.0.0.1:1" in message and "hidden-word" not in message


def test_a_statement_that_the_server_refuses_is_no_lost_connection(airflow_database: str) -> None:
    connection = connect(airflow_database, application_name="test")
    with connection.cursor() as cursor:
        for statement in ("SET statement_timeout = 1; SELECT pg_sleep(10)", "SELECT 1 / 0"):
            with pytest.raises(psycopg2.Error) as refused:
                cursor.execute(statement)
            assert connection_failure(refused.value, airflow_database) is None
    connection.close()
    with pytest.raises(psycopg2.Error) as gone:
        connection.cursor()
    assert connection_failure(gone.value, airflow_database)
    wrapped = ValueError("of a library")
    wrapped.__cause__ = gone.value
    assert isinstance(connection_failure(wrapped, airflow_database), UnreachableError)


def test_migrate_makes_the_schema_once_and_drop_removes_it(
    children: AirflowChildren, fresh_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _deployed(monkeypatch, fresh_database)
    children.url = fresh_database
    assert not _ask(children, "claim_database")["schema_current"]
    first = _ask(children, "migrate")
    assert first["changed"]
    assert _ask(children, "migrate") == {"changed": False, "revision": first["revision"]}
    described = _ask(children, "check_database")
    assert (described["revision"], described["schema_current"]) == (first["revision"], True)
    monkeypatch.setenv("AIRFLOW__DATABASE__EXTERNAL_DB_MANAGERS", "a.manager.with.tables.of.its.Own")
    assert not _ask(children, "check_database")["schema_current"]
    assert _ask(children, "drop_schema") == {"changed": True}
    assert children.sql("SELECT to_regclass('modalflow_environment'), to_regclass('job')") == [(None, None)]
    assert _ask(children, "drop_schema") == {"changed": False}


def test_migration_does_not_interrupt_a_run(
    children: AirflowChildren, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provisioning, "LOCK_SECONDS", 0.3)
    _ask(children, "claim_database")
    with AdvisoryLock(children.url, application_name=application_name(ENV)) as lock:
        lock.acquire()
        assert _ask(children, "migrate") == {
            "busy": f"another process of environment {ENV!r} holds the scheduler's lock",
            "holder": None,
        }
        assert "busy" in _ask(children, "drop_schema")
    # What an interrupted command has left under way is no scheduler run.
    with AdvisoryLock(children.url, application_name=application_name(ENV, "migrate")) as lock:
        lock.acquire()
        assert _ask(children, "migrate") == {
            "busy": f"operation migrate of environment {ENV!r} holds the scheduler's lock",
            "holder": "migrate",
        }
    assert not _ask(children, "migrate")["changed"]


def test_interrupted_migration_has_ended_when_the_lock_is_free(
    children: AirflowChildren,
) -> None:
    class Lasting:
        """A zygote whose child is interrupted in the middle of what it does."""

        child: Child

        def spawn(self, target: str, args: Mapping[str, Any], env: Any = None) -> Any:
            self.child = children.spawn("signal:pause")
            return self

        def wait(self, seconds: float) -> Outcome | None:
            if seconds:
                # As Modal does when it takes the container away.
                signal.raise_signal(signal.SIGINT)
            return self.child.wait(seconds)

        def kill(self) -> None:
            self.child.kill()

    _ask(children, "claim_database")
    lasting = Lasting()
    with pytest.raises(KeyboardInterrupt):
        operations.handle(lasting, "migrate", {})  # type: ignore[arg-type]
    ended = lasting.child.wait(0)
    assert ended is not None and ended.signal == signal.SIGKILL
    assert not _ask(children, "migrate")["changed"]


def test_migrate_refuses_the_database_of_a_newer_airflow(children: AirflowChildren) -> None:
    _ask(children, "claim_database")
    children.sql("UPDATE alembic_version SET version_num = 'fedcba987654'")
    kind, message = _refusal(children, "migrate")
    assert kind == "failed"
    assert "fedcba987654" in message
    assert "newer Airflow" in message


def test_dags_are_listed_with_errors(children: AirflowChildren) -> None:
    children.parse({"a/first.py": DAG.format(dag_id="first"), "bad.py": "1 / 0  # dag airflow"}, per_file=10)
    listed = _ask(children, "dags.list")
    [dag] = listed["dags"]
    assert (dag["dag_id"], dag["file"], dag["paused"], dag["stale"]) == ("first", "a/first.py", False, False)
    assert dag["last_parsed"].endswith("Z")
    assert children.sql("SELECT version FROM dag_bundle") == [(listed["parsed_version"],)]
    assert _ask(children, "dags.parsed") == {"parsed_version": listed["parsed_version"]}
    [error] = listed["import_errors"]
    assert error["file"] == "bad.py"
    assert "ZeroDivisionError" in error["error"]


def test_trigger_is_idempotent_and_checks_what_it_is_given(children: AirflowChildren) -> None:
    children.parse({"a.py": DAG.format(dag_id="report_daily")}, per_file=10)

    def child(**args: Any) -> Outcome:
        return children.outcome("airflow_provider_modal.control.child:run", op="dags.trigger", args=args)

    arguments = {"dag_id": "report_daily", "run_id": "r1", "conf": {"day": 3}}
    assert child(**arguments).result == {"run_id": "r1", "created": True, "paused": False}
    assert child(**arguments).result == {"run_id": "r1", "created": False, "paused": False}
    children.sql("UPDATE dag SET is_paused = true")
    assert child(**arguments).result == {"run_id": "r1", "created": False, "paused": True}
    children.sql("UPDATE dag SET is_paused = false")
    assert children.sql("SELECT conf, triggered_by FROM dag_run") == [({"day": 3}, "CLI")]
    assert child(dag_id="report_daily", run_id="r2", logical_date="2025-01-01T00:00:00Z").result["created"]
    again = child(dag_id="report_daily", run_id="r3", logical_date="2025-01-01T00:00:00Z")
    assert again.error_kind == "failed"
    assert again.error and "report_daily" in again.error
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"dag_id": "report_dayly", "run_id": "r"}, "not_found", "did you mean report_daily?"),
        ({"dag_id": "report_daily", "run_id": "r", "conf": {"day": "x"}}, "config", "day"),
        ({"dag_id": "report_daily", "run_id": "r", "logical_date": "soon"}, "config", "soon"),
    ]
    for refused, kind, sentence in wrong:
        outcome = child(**refused)
        assert (outcome.error_kind, outcome.result) == (kind, None)
        assert outcome.error and sentence in outcome.error


def test_what_gives_work_wakes_the_scheduler(
    children: AirflowChildren, local_modal: LocalModal, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = f"trigger-{secrets.token_hex(4)}"
    monkeypatch.setenv(airflow_settings.ENV_NAME, env)
    children.parse({"a.py": DAG.format(dag_id="first")}, per_file=10)
    with using(local_modal), scheduler_app(env) as app:
        _refusal(children, "dags.trigger", dag_id="fist", run_id="r1")
        changed = {"dag_id": "first", "paused": True, "changed": True}
        assert _ask(children, "dags.pause", dag_ids=["first", "first"]) == {"dags": [changed]}
        assert _ask(children, "dags.pause", dag_ids=["first"]) == {"dags": [{**changed, "changed": False}]}
        assert children.sql("SELECT is_paused FROM dag") == [(True,)]
        kind, message = _refusal(children, "dags.unpause", dag_ids=["first", "fist"])
        assert (kind, message) == (
            "not_found",
            "DAG fist does not exist; did you mean first? (nothing was changed)",
        )
        assert children.sql("SELECT is_paused FROM dag") == [(True,)]
        assert app.wish is None
        assert _ask(children, "dags.unpause", dag_ids=["first"]) == {"dags": [{**changed, "paused": False}]}
        assert children.sql("SELECT is_paused FROM dag") == [(False,)]
        assert app.wish == app.started() == "dags.unpause"
        app.taken()
        assert _ask(children, "dags.trigger", dag_id="first", run_id="r1")["created"]
        assert app.wish == app.started() == "dags.trigger"
        assert not wakeup.request_run(ResourceNames(env), "while that wish waits to be taken")
        assert wakeup.request_run(ResourceNames(env), "the schedule", force=True)
        assert app.started() == "the schedule"


def test_trigger_is_done_although_nobody_can_be_woken(
    children: AirflowChildren, local_modal: LocalModal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(airflow_settings.ENV_NAME, f"trigger-{secrets.token_hex(4)}")
    children.parse({"a.py": DAG.format(dag_id="first")}, per_file=10)
    with using(local_modal):
        assert _ask(children, "dags.trigger", dag_id="first", run_id="r1")["created"]
    assert children.sql("SELECT run_id FROM dag_run") == [("r1",)]


def test_trigger_of_a_dag_whose_file_is_broken_says_so(children: AirflowChildren) -> None:
    children.parse({"a.py": DAG.format(dag_id="first")}, per_file=10)
    children.parse({"a.py": "1 / 0  # dag airflow"})
    outcome = children.outcome(
        "airflow_provider_modal.control.child:run",
        op="dags.trigger",
        args={"dag_id": "first", "run_id": "r"},
    )
    assert outcome.error and "a.py has an import error" in outcome.error


def test_run_is_shown_with_tries_and_reasons(children: AirflowChildren) -> None:
    children.parse({"a.py": DAG.format(dag_id="first").replace("retries=1", "retries=1, retry_delay=1")})
    trigger_run(children, "first", "r1")
    children.schedule()
    run = _ask(children, "runs.show", dag_id="first", run_id="r1")
    assert run["state"] == "success"
    assert [(t["task_id"], t["map_index"], t["try_number"], t["state"]) for t in run["tasks"]] == [
        ("fails_once", -1, 2, "success"),
        ("hello", 0, 1, "success"),
        ("hello", 1, 1, "success"),
    ]
    [former] = run["tasks"][0]["history"]
    assert (former["try_number"], former["state"]) == (1, "failed")
    assert former["reason"] == "it fails once"
    assert run["tasks"][1]["external_executor_id"] == "call-of-hello"
    trigger_run(children, "first", "later")
    listed = _ask(children, "runs.list")
    assert ([(run["run_id"], run["state"]) for run in listed["runs"]], listed["more"]) == (
        [("later", "queued"), ("r1", "success")],
        False,
    )
    [ended] = _ask(children, "runs.list", dag_id="first", states=["success"])["runs"]
    assert (ended["start"], ended["end"], ended["type"]) == (run["start"], run["end"], "manual")
    assert _ask(children, "runs.list", limit=1)["more"]
    children.sql(
        "UPDATE task_instance SET queue = 'gone', start_date = now() - interval '70 minutes',"
        " end_date = now() - interval '50 minutes' WHERE task_id = 'hello' AND run_id = 'r1'"
    )
    children.sql("UPDATE task_instance SET start_date = NULL WHERE task_id <> 'hello'")
    children.sql("UPDATE task_instance_history SET start_date = now() - interval '1 day', end_date = now()")
    used = {row["task_id"]: row for row in _ask(children, "usage", seconds=3600.0, by="task")["usage"]}
    assert {name: (row["dag_id"], row["tries"], round(row["seconds"], -2)) for name, row in used.items()} == {
        "hello": ("first", 2, 1200),
        "fails_once": ("first", 1, 3600),
    }
    assert {(row["cores"], row["mib"], row["gpu"]) for row in used.values()} == {(1, 2048, None)}
    assert _ask(children, "usage", seconds=60.0, by="run")["usage"][0]["run_id"] == "r1"
    children.sql("UPDATE dag_run SET state = 'failed', end_date = now() WHERE run_id = 'r1'")
    counted = _ask(children, "counts")
    assert (counted["runs"], counted["failed_runs"], counted["import_errors"]) == ({"queued": 1}, 1, 0)
    assert _refusal(children, "runs.list", dag_id="fist") == (
        "not_found",
        "DAG fist does not exist; did you mean first?",
    )
    assert _refusal(children, "runs.show", dag_id="first", run_id="r2") == (
        "not_found",
        "DAG first has no run r2",
    )


def test_xcom_is_returned_as_json_and_what_json_lacks_as_airflow_shows_it(children: AirflowChildren) -> None:
    children.parse({"a.py": DAG.format(dag_id="first")}, per_file=10)
    trigger_run(children, "first", "r1")
    values = {"whole": 5, "text": "5", "nothing": None, "list": [1, {"a": 2.5}], "mapping": {"k": [True]}}
    children.run("tests.support.airflow_children:push", dag_id="first", run_id="r1", values=values)
    where = {"dag_id": "first", "run_id": "r1", "task_id": "fails_once"}
    for key, value in values.items():
        assert _ask(children, "xcom.get", **where, key=key) == {"value": value}
    assert _ask(children, "xcom.get", **where, key="date")["value"].startswith("datetime.datetime@")
    kind, message = _refusal(children, "xcom.get", **where)
    assert (kind, message) == ("not_found", "task fails_once of run r1 has no XCom 'return_value'")


def test_unknown_operation_and_argument_are_refused(children: AirflowChildren) -> None:
    kind, message = _refusal(children, "dags.explode")
    assert (kind, "'dags.explode'" in message) == ("config", True)
    kind, message = _refusal(children, "dags.list", colour="red")
    assert kind == "failed"
    assert "colour" in message


def test_password_in_an_unexpected_error_is_masked(children: AirflowChildren) -> None:
    password = urlsplit(children.url).password
    message = operations.failure("failed", f"could not use {children.url} ({password})")["error"]["message"]
    assert password and password not in message


def test_child_that_dies_is_told(children: AirflowChildren) -> None:
    class Dying:
        def spawn(self, target: str, args: Mapping[str, Any], env: Any = None) -> Child:
            child = children.spawn("time:sleep", secs=60)
            child.kill()
            return child

    assert isinstance(children.zygote, Zygote)
    answer = operations.handle(Dying(), "dags.list", {})  # type: ignore[arg-type]
    assert answer["error"]["kind"] == "failed"
    assert "killed by signal 9" in answer["error"]["message"]

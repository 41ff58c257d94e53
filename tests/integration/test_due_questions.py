"""Does the due-check name every single thing that there can be to do, and nothing that is only near it?"""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_modal import names
from airflow_provider_modal.scheduler import due
from tests.support.airflow_children import AirflowChildren, trigger_run

FILE = """
from datetime import datetime, timedelta
from airflow.sdk import DAG, Asset, task

def lasts(**options):
    @task(task_id="lasts", **options)
    def work(number=0): pass
    return work

with DAG("lasts", schedule=None): lasts()()
with DAG("timed", schedule=None, dagrun_timeout=timedelta(hours=1)): lasts()()
with DAG("one_run", schedule=None, max_active_runs=1): lasts()()
with DAG("limited", schedule=None): lasts(max_active_tis_per_dag=1).expand(number=[1, 2])
with DAG("limited_run", schedule=None): lasts(max_active_tis_per_dagrun=1).expand(number=[1, 2])
DAILY = {"schedule": "@daily", "start_date": datetime(2024, 1, 1), "catchup": True}
with DAG("daily", max_active_runs=1, **DAILY): lasts()()
with DAG("both", schedule=Asset("a") & Asset("b")): lasts()()
"""
RUNS = [("lasts", "r1"), ("timed", "r1"), ("one_run", "r1"), ("one_run", "r2"), ("limited", "r1")]
SETTINGS = due.Settings(silent=3600.0, heartbeat_timeout=3600.0, queued_timeout=3600.0)
PAUSED = "DAGs were paused or unpaused, or limits changed"
BUNDLE = names.BUNDLE_NAME


@dataclass(frozen=True)
class Case:
    """A reason, the statements after which it holds, and others after which there still is nothing to do."""

    reason: str
    due: str
    quiet: str = ""


def _ti(values: str, dag_id: str = "lasts") -> str:
    return f"UPDATE task_instance SET {values} WHERE dag_id = '{dag_id}' AND state = 'running'"


def _runs(values: str, dag_id: str) -> str:
    return f"UPDATE dag_run SET {values} WHERE dag_id = '{dag_id}' AND state = 'running'"


def _dag(values: str, dag_id: str = "lasts") -> str:
    return f"UPDATE dag SET {values} WHERE dag_id = '{dag_id}'"


def _sensor(at: str) -> str:
    return _ti("state = 'up_for_reschedule'") + (
        "; INSERT INTO task_reschedule (ti_id, start_date, end_date, duration, reschedule_date)"
        f" SELECT id, now(), now(), 0, {at} FROM task_instance WHERE dag_id = 'lasts'"
    )


def _updated(*assets: str) -> str:
    return (
        "INSERT INTO asset_dag_run_queue (asset_id, target_dag_id, created_at)"
        f" SELECT id, 'both', now() FROM asset WHERE name = ANY(ARRAY{list(assets)})"
    )


def _partition(at: str) -> str:
    return (
        "INSERT INTO asset_partition_dag_run (target_dag_id, partition_key, created_at, updated_at)"
        f" VALUES ('both', 'k', {at}, {at})"
    )


def _backfill(after: str = "") -> str:
    return (
        "INSERT INTO backfill (id, dag_id, from_date, to_date, dag_run_conf, is_paused, reprocess_behavior,"
        " max_active_runs, created_at, updated_at)"
        f" VALUES (7, 'lasts', now(), now(), '{{}}', false, 'none', 1, now(), now()); {after}"
    )


def _callback(kind: str, state: str, bundle: str = "NULL", at: str = "now()") -> str:
    return (
        "INSERT INTO callback (id, type, fetch_method, data, priority_weight, created_at, state, bundle_name)"
        f" VALUES (md5('x')::uuid, '{kind}', 'import_path', '{{}}', 1, {at}, '{state}', {bundle})"
    )


def _deadline(at: str, missed: str = "false") -> str:
    return _callback("triggerer", "scheduled") + (
        "; INSERT INTO deadline (id, created_at, last_updated_at, deadline_time, missed, callback_id)"
        f" VALUES (md5('y')::uuid, now(), now(), {at}, {missed}, md5('x')::uuid)"
    )


def _connection_test(state: str, at: str) -> str:
    return (
        "INSERT INTO connection_test_request"
        " (id, token, connection_id, conn_type, state, created_at, updated_at)"
        f" VALUES (md5('x')::uuid, 't', 'c', 'http', '{state}', {at}, {at})"
    )


def _request(bundle: str) -> str:
    return (
        "INSERT INTO dag_priority_parsing_request (id, bundle_name, relative_fileloc)"
        f" VALUES ('x', '{bundle}', 'file.py')"
    )


def _trigger(queue: str, used: bool) -> str:
    inserted = (
        "INSERT INTO trigger (id, classpath, kwargs, created_date, queue)"
        f" VALUES (7, 'nowhere.Never', '', now(), {queue})"
    )
    return f"{inserted}; {_ti('trigger_id = 7')}" if used else inserted


def _log(event: str, ago: str) -> str:
    return (
        "INSERT INTO log (dttm, event, extra)"
        f" VALUES (now() - interval '{ago}', '{event}', 'a-dispatch: what there is to say')"
    )


PAST, FUTURE = "now() - interval '1 second'", "now() + interval '1 hour'"
LONG_AGO = "now() - interval '2 hours'"
CANCELLED = _log("modal call cancelled", "1 minute")
CARE = "a running or queued task must be looked after"
CASES = [
    Case(
        "a scheduled DAG run is due",
        _dag(f"next_dagrun_create_after = {PAST}"),
        _dag(f"next_dagrun_create_after = {PAST}, allowed_run_types = '[\"manual\"]'"),
    ),
    Case(
        "a scheduled DAG run is due",
        _dag("exceeds_max_non_backfill = false", "daily"),
        _dag(f"next_dagrun_create_after = {FUTURE}"),
    ),
    Case("a DAG has room for another run", _runs("state = 'failed'", "daily")),
    Case("a queued DAG run can start", _runs("state = 'success'", "one_run")),
    Case(
        "a queued DAG run can start",
        _backfill("UPDATE dag_run SET backfill_id = 7 WHERE dag_id = 'one_run' AND state = 'queued'"),
        _backfill("UPDATE dag_run SET backfill_id = 7 WHERE dag_id = 'one_run'"),
    ),
    Case(
        "a DAG run can move on",
        _ti("state = 'success', updated_at = now()"),
        _ti("updated_at = now(), last_heartbeat_at = now()"),
    ),
    Case(
        "a DAG changed under its runs",
        "UPDATE serialized_dag SET last_updated = now() WHERE dag_id = 'lasts'",
        "UPDATE serialized_dag SET last_updated = now() WHERE dag_id = 'both'",
    ),
    Case(
        "a DAG run has reached its dagrun_timeout",
        _runs(f"start_date = {LONG_AGO}", "timed"),
        _runs("start_date = now() - interval '1 minute'", "timed"),
    ),
    Case(
        "a task can be queued",
        _ti("state = 'failed'", "limited"),
        _ti("state = 'deferred'", "limited"),
    ),
    Case("a task can be queued", _ti("state = 'failed'", "limited_run")),
    Case("a sensor is due again", _sensor(PAST), _sensor(FUTURE)),
    Case(
        "a retry is due",
        _ti(f"state = 'up_for_retry', end_date = {LONG_AGO}"),
        _ti("state = 'up_for_retry', end_date = now()"),
    ),
    Case(
        "a deferred task has reached its timeout",
        _ti(f"state = 'deferred', trigger_timeout = {PAST}"),
        _ti(f"state = 'deferred', trigger_timeout = {FUTURE}"),
    ),
    Case(
        "a deferred task has reached its timeout",
        _ti(f"state = 'awaiting_input', trigger_timeout = {PAST}"),
        _ti(f"state = 'awaiting_input', trigger_timeout = {FUTURE}"),
    ),
    Case(CARE, _ti("state = 'restarting'")),
    Case(CARE, _ti(f"last_heartbeat_at = {LONG_AGO}"), _ti("last_heartbeat_at = now()")),
    Case(
        CARE,
        _ti("state = 'queued', queued_dttm = now(), external_executor_id = md5('x')::uuid::text"),
        _ti("state = 'queued', queued_dttm = now()"),
    ),
    Case(
        "runs of a paused DAG can end",
        f"{_dag('is_paused = true')}; {_ti('''state = 'success', updated_at = now()''')}",
        _dag("is_paused = true"),
    ),
    Case("assets were updated", _updated("a", "b"), _updated("a")),
    Case("partitions of assets were updated", _partition("now()"), _partition(LONG_AGO)),
    Case(
        "a backfill is complete",
        _backfill("INSERT INTO backfill_dag_run (backfill_id, sort_ordinal) VALUES (7, 1)"),
        _backfill(),
    ),
    Case("callbacks wait", _callback("dag_processor", "pending", f"'{BUNDLE}'")),
    Case("callbacks wait", _callback("executor", "pending"), _callback("executor", "running")),
    Case("callbacks wait", _callback("executor", "queued", at=LONG_AGO), _callback("triggerer", "pending")),
    Case("a deadline has passed", _deadline(PAST), _deadline(FUTURE)),
    Case("a deadline has passed", _deadline(PAST), _deadline(PAST, missed="true")),
    Case(
        "a connection test waits",
        _connection_test("pending", "now()"),
        _connection_test("queued", "now()"),
    ),
    Case(
        "a connection test waits",
        _connection_test("running", LONG_AGO),
        _connection_test("success", LONG_AGO),
    ),
    Case("DAG files must be parsed", _request(BUNDLE), _request("another")),
    Case(
        "DAG files must be parsed",
        _dag(f"last_parsed_time = {LONG_AGO}"),
        _dag(f"last_parsed_time = {LONG_AGO}, is_stale = true", "both"),
    ),
    Case("assets must be activated or put aside", "DELETE FROM asset_active WHERE name = 'a'"),
    Case("triggers are left over", _trigger("'other'", used=False), _trigger("'other'", used=True)),
    Case("triggers wait for a triggerer", _trigger("NULL", used=True)),
    Case(
        "a cancelled call may not have ended",
        CANCELLED,
        f"{CANCELLED}; {_log('modal call ended', '50 seconds')}",
    ),
]


def test_every_reason_is_told_and_what_is_only_near_it_is_not(airflow_children: AirflowChildren) -> None:
    """Runs, backfills and tasks that limits hold are there all the time, and no reason."""
    airflow_children.parse({"file.py": FILE})
    for dag_id, run_id in [*RUNS, ("limited_run", "r1")]:
        trigger_run(airflow_children, dag_id, run_id)
    assert airflow_children.schedule()["stopped"] == "idle"
    held = airflow_children.sql(
        "SELECT dag_id FROM task_instance WHERE state = 'scheduled'"
        " UNION SELECT dag_id FROM dag_run WHERE state = 'queued'"
        " UNION SELECT dag_id FROM dag WHERE next_dagrun_create_after < now() ORDER BY dag_id"
    )
    assert [dag_id for (dag_id,) in held] == ["daily", "limited", "limited_run", "one_run"]

    wrong = []
    with airflow_children.connection() as connection:
        since = due.look(connection)
        connection.autocommit = False
        for case in CASES:
            for statements, expected in ((case.due, {case.reason}), (case.quiet, set())):
                with connection.cursor() as cursor:
                    cursor.execute(statements or "SELECT")
                    assert not statements or cursor.rowcount, statements
                found = set(due.check(connection, SETTINGS, since=since, margin=0.0).reasons) - {PAUSED}
                connection.rollback()
                if not (expected <= found if expected else not found):
                    wrong.append((case.reason, statements, found))
    assert not wrong, "\n".join(map(str, wrong))
    assert {case.reason for case in CASES} == set(due.REASONS)

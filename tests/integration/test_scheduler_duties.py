"""Does one bounded run do all that a long-lived scheduler does by and by?"""

from __future__ import annotations

from typing import Any

from tests.support.airflow_children import AirflowChildren, trigger_run

FILE = """
from airflow.sdk import DAG, Asset, task

def lasts(**options):
    @task(task_id="lasts", **options)
    def work(): pass
    work()

with DAG("deferred", schedule=None): lasts()
with DAG("asks", schedule=None): lasts()
with DAG("silent", schedule=None): lasts()
with DAG("stuck", schedule=None): lasts()
with DAG("paused", schedule=None): lasts()
with DAG("on_asset", schedule=Asset("used")): lasts()
"""
DAGS = ["deferred", "asks", "silent", "stuck", "paused"]
LONG_AGO = "now() - interval '2 days'"
STATES = f"""
    INSERT INTO trigger (id, classpath, kwargs, created_date, queue)
    VALUES (7, 'nowhere.Never', '', now(), 'theirs'), (8, 'nowhere.Never', '', now(), 'theirs');
    UPDATE task_instance SET state = 'deferred', trigger_id = 7, trigger_timeout = {LONG_AGO}
     WHERE dag_id = 'deferred';
    UPDATE task_instance SET state = 'awaiting_input', trigger_timeout = {LONG_AGO} WHERE dag_id = 'asks';
    INSERT INTO hitl_detail (ti_id, options, defaults, subject, created_at, params, params_input)
    SELECT id, '["yes", "no"]', '["yes"]', 'Go on?', now(), '{{}}', '{{}}'
      FROM task_instance WHERE dag_id = 'asks';
    UPDATE task_instance SET last_heartbeat_at = {LONG_AGO} WHERE dag_id = 'silent';
    UPDATE task_instance SET state = 'queued', queued_dttm = {LONG_AGO} WHERE dag_id = 'stuck';
    UPDATE dag SET is_paused = true WHERE dag_id = 'paused';
    UPDATE task_instance SET state = 'success', updated_at = now() WHERE dag_id = 'paused';
    INSERT INTO backfill (id, dag_id, from_date, to_date, dag_run_conf, is_paused, reprocess_behavior,
                          max_active_runs, created_at, updated_at)
    VALUES (7, 'stuck', now(), now(), '{{}}', false, 'none', 1, {LONG_AGO}, now());
    INSERT INTO asset (id, name, uri, "group", extra, created_at, updated_at)
    VALUES (77, 'unused', 'unused', 'asset', '{{}}', now(), now());
    INSERT INTO asset_active (name, uri) VALUES ('unused', 'unused');
    DELETE FROM asset_active WHERE name = 'used';
    INSERT INTO connection_test_request (id, token, connection_id, conn_type, state, created_at, updated_at)
    VALUES (md5('x')::uuid, 't', 'c', 'http', 'running', {LONG_AGO}, {LONG_AGO})
"""
MANY = 500
MANY_RUNS = f"""
    INSERT INTO dag_run SELECT (copy).* FROM (
        SELECT jsonb_populate_record(r, jsonb_build_object(
                   'id', 1000 + number, 'run_id', 'many-' || number, 'last_scheduling_decision', NULL,
                   'logical_date', now() - number * interval '1 minute')) AS copy
          FROM dag_run r, generate_series(1, {MANY}) AS number WHERE r.dag_id = 'many') AS copies;
    INSERT INTO task_instance SELECT (copy).* FROM (
        SELECT jsonb_populate_record(t, jsonb_build_object(
                   'id', gen_random_uuid(), 'run_id', 'many-' || number, 'state', 'success')) AS copy
          FROM task_instance t, generate_series(1, {MANY}) AS number WHERE t.dag_id = 'many') AS copies
"""


def _one(children: AirflowChildren, statement: str) -> Any:
    return children.sql(statement)[0][0]


def test_every_timed_duty_is_done_in_one_run(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"file.py": FILE})
    for dag_id in DAGS:
        trigger_run(airflow_children, dag_id, "r1")
    airflow_children.schedule()
    airflow_children.sql(STATES)
    airflow_children.schedule()

    deferred = "SELECT next_method FROM task_instance WHERE dag_id = 'deferred'"
    assert _one(airflow_children, deferred) == "__fail__"
    assert _one(airflow_children, "SELECT chosen_options::text FROM hitl_detail") == '["yes"]'
    assert _one(airflow_children, "SELECT state FROM task_instance WHERE dag_id = 'silent'") == "failed"
    assert _one(airflow_children, "SELECT count(*) FROM log WHERE event ~ '^stuck in queued'") >= 1
    assert _one(airflow_children, "SELECT state FROM dag_run WHERE dag_id = 'paused'") == "success"
    assert _one(airflow_children, "SELECT completed_at FROM backfill") is not None
    assert airflow_children.sql("SELECT name FROM asset_active") == [("used",)]
    assert airflow_children.sql("SELECT id FROM trigger WHERE id = 8") == []
    assert _one(airflow_children, "SELECT state FROM connection_test_request") == "failed"


def test_five_hundred_active_runs_are_all_looked_at(airflow_children: AirflowChildren) -> None:
    dag = FILE.partition("with DAG")[0] + 'with DAG("many", schedule=None, max_active_runs=1000): lasts()\n'
    airflow_children.parse({"many.py": dag})
    trigger_run(airflow_children, "many", "r1")
    airflow_children.schedule()
    airflow_children.sql(MANY_RUNS)
    assert airflow_children.schedule(max_seconds=90.0)["stopped"] == "idle"
    ended = _one(airflow_children, "SELECT count(*) FROM dag_run WHERE state = 'success'")
    assert ended == MANY

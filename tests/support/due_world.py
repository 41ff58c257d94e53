"""A small Airflow world for the due-check: DAGs of many kinds, what may happen to them, and what changed.

``act`` and ``schedule`` run in children of the zygote (see ``airflow_children``); the rest in the test.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

FILES = {
    "world.py": """
from datetime import datetime, timedelta
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, task

A, B, C = Asset("a"), Asset("b"), Asset("c")
DAILY = {"schedule": "@daily", "start_date": datetime(2024, 1, 1), "end_date": datetime(2024, 1, 3)}

def plain(task_id, **options):
    @task(task_id=task_id, **options)
    def work(): pass
    return work()

with DAG("chain", schedule=None):
    EmptyOperator(task_id="start") >> plain("first") >> EmptyOperator(task_id="middle") >> plain("second")
with DAG("retries", schedule=None):
    plain("fails_once", retries=1, retry_delay=timedelta(seconds=2)) >> plain("after")
with DAG("backs_off", schedule=None):
    plain("fails_once", retries=2, retry_delay=timedelta(seconds=1), retry_exponential_backoff=2.0)
with DAG("long", schedule=None):
    plain("lasts") >> [plain("after"), plain("any", trigger_rule="one_success")]
with DAG("past", catchup=True, max_active_runs=3, **DAILY):
    plain("lasts", depends_on_past=True) >> plain("after")
with DAG("narrow", schedule=None):
    [plain("lasts_one", pool="narrow"), plain("lasts_two", pool="narrow")]
    plain("wide", pool="narrow", pool_slots=2)
with DAG("one_run", schedule=None, max_active_runs=1):
    plain("lasts")
with DAG("one_task", schedule=None, max_active_tasks=1):
    [plain("lasts_one"), plain("lasts_two"), plain("quick")]
with DAG("one_at_a_time", schedule=None):
    plain("lasts", max_active_tis_per_dag=1) >> plain("after")
with DAG("times_out", schedule=None, dagrun_timeout=timedelta(seconds=4)):
    plain("lasts")
with DAG("both", schedule=A & B):
    plain("quick")
with DAG("either", schedule=B | C):
    plain("lasts")
with DAG("mapped", schedule=None):
    @task
    def lasts_each(number): pass
    lasts_each.expand(number=[1, 2]) >> plain("after", trigger_rule="all_done")
with DAG("told", schedule=None, on_failure_callback=lambda context: None):
    plain("lasts")
with DAG("every_hour", schedule="@hourly", start_date=datetime(2024, 1, 1), catchup=False):
    plain("quick")
"""
}
MANUAL = [
    "chain",
    "retries",
    "backs_off",
    "long",
    "narrow",
    "one_run",
    "one_task",
    "one_at_a_time",
    "times_out",
    "mapped",
    "told",
]

IGNORED_TABLES = frozenset({"job", "alembic_version", "log"})
"""Rows that tell of the run itself. Callbacks and triggers are not among them."""
IGNORED_COLUMNS = {
    "dag_run": {"last_scheduling_decision", "updated_at", "scheduled_by_job_id", "context_carrier"},
    "task_instance": {"updated_at", "queued_by_job_id", "last_heartbeat_at"},
}
"""What a run writes whenever it looks at something, whether it changes anything or not."""


def prepare(connection: Connection) -> None:
    """Make the pool that the world's DAGs use."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO slot_pool (pool, slots, description, include_deferred)"
            " VALUES ('narrow', 1, '', false)"
        )


def rows(url: str) -> dict[str, set[str]]:
    """Return all rows of a database, without what every run writes."""
    found: dict[str, set[str]] = {}
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            for (table,) in cursor.fetchall():
                if table in IGNORED_TABLES:
                    continue
                ignored = sorted(IGNORED_COLUMNS.get(table, ()))
                cursor.execute(f'SELECT (to_jsonb(x) - %s::text[])::text FROM "{table}" x', (ignored,))
                found[table] = {row for (row,) in cursor.fetchall()}
    finally:
        connection.close()
    return found


def difference(before: dict[str, set[str]], after: dict[str, set[str]]) -> list[str]:
    """Return what changed, a line per row."""
    lines = []
    for table in sorted(before):
        lines += [f"- {table} {row[:400]}" for row in sorted(before[table] - after[table])]
        lines += [f"+ {table} {row[:400]}" for row in sorted(after[table] - before[table])]
    return lines


def schedule(env: str, max_seconds: float) -> Any:
    """Run the scheduler in this child without waiting for what time will bring."""
    from airflow_provider_modal.scheduler import af3, bounded

    bounded.HORIZON_SECONDS = 0.0
    af3.StopRule = partial(bounded.StopRule, linger_seconds=0.0)  # type: ignore[assignment,misc]
    return af3.schedule(env, max_seconds)


def act(seed: int, count: int = 1) -> list[str]:
    """Let some things happen, in this child, as Airflow's own parts do them; return what."""
    from airflow.utils.session import create_session

    choice = random.Random(seed)
    done = []
    for _ in range(count):
        happening = choice.choices(list(HAPPENINGS), list(HAPPENINGS.values()))[0]
        with create_session() as session:
            what = happening(choice, session)
        done.append(f"{happening.__name__}: {what}")
    return done


def _trigger(choice: random.Random, session: Any) -> Any:
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.utils.types import DagRunTriggeredByType

    dag_id = choice.choice(MANUAL)
    run_id = f"run-{choice.randrange(10**9)}"
    trigger_dag(dag_id=dag_id, run_id=run_id, triggered_by=DagRunTriggeredByType.TEST)
    return dag_id


def _end(choice: random.Random, session: Any) -> Any:
    """A worker ends, well or not, in one of the ways that a task can end."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.taskreschedule import TaskReschedule
    from airflow.models.trigger import Trigger
    from airflow.utils.state import TaskInstanceState as State

    ti = _one(choice, session, State.RUNNING)
    if ti is None:
        return None
    now = datetime.now(timezone.utc)
    state = choice.choice(
        [State.SUCCESS] * 4
        + [State.FAILED, State.SKIPPED, State.UP_FOR_RETRY, State.UP_FOR_RESCHEDULE, State.DEFERRED]
    )
    if state == State.UP_FOR_RESCHEDULE:
        again = now + timedelta(seconds=choice.choice([0, 2, 60]))
        session.add(TaskReschedule(ti.id, now, now, again))
    if state == State.DEFERRED:
        trigger = Trigger(classpath="nowhere.Never", kwargs={})
        session.add(trigger)
        session.flush()
        ti.trigger_id = trigger.id
        ti.trigger_timeout = choice.choice([None, now + timedelta(seconds=choice.choice([0, 2, 60]))])
    ti.state, ti.end_date = state, now
    assert isinstance(ti, TaskInstance)
    return f"{ti.dag_id}.{ti.task_id} {state}"


def _resume(choice: random.Random, session: Any) -> Any:
    """A trigger has fired."""
    from airflow.utils.state import TaskInstanceState as State

    ti = _one(choice, session, State.DEFERRED)
    if ti is None:
        return None
    ti.state, ti.trigger_id, ti.scheduled_dttm = State.SCHEDULED, None, datetime.now(timezone.utc)
    return f"{ti.dag_id}.{ti.task_id}"


def _clear(choice: random.Random, session: Any) -> Any:
    from airflow.models.taskinstance import clear_task_instances
    from airflow.utils.state import TaskInstanceState as State

    state = choice.choice([State.SUCCESS, State.SUCCESS, State.FAILED, State.SKIPPED, State.RUNNING])
    ti = _one(choice, session, state)
    if ti is None:
        return None
    clear_task_instances([ti], session)
    return f"{ti.dag_id}.{ti.task_id} {state}"


def _mark(choice: random.Random, session: Any) -> Any:
    from airflow.utils.state import TaskInstanceState as State

    ti = _one(choice, session, choice.choice([State.FAILED, State.RUNNING, State.UP_FOR_RETRY, None]))
    if ti is None:
        return None
    was = ti.state
    ti.set_state(State.SUCCESS, session=session)
    return f"{ti.dag_id}.{ti.task_id} {was}"


def _finish(choice: random.Random, session: Any) -> Any:
    """A person ends a DAG run."""
    from airflow.api.common.mark_tasks import set_dag_run_state_to_success
    from airflow.models.dagbag import DBDagBag
    from airflow.models.dagrun import DagRun
    from sqlalchemy import select

    query = select(DagRun).where(DagRun.state == "running").order_by(DagRun.dag_id, DagRun.run_id)
    runs = session.scalars(query).all()
    if not runs:
        return None
    run = choice.choice(runs)
    dag = DBDagBag().get_dag_for_run(run, session=session)
    assert dag is not None
    set_dag_run_state_to_success(dag=dag, run_id=run.run_id, commit=True, session=session)
    return f"{run.dag_id} {run.run_id}"


def _pause(choice: random.Random, session: Any) -> Any:
    from airflow.models.dag import DagModel
    from sqlalchemy import select

    dags = session.scalars(select(DagModel).order_by(DagModel.dag_id)).all()
    paused = [dag for dag in dags if dag.is_paused]
    dag = choice.choice(paused if paused and choice.random() < 0.7 else dags)
    dag.is_paused = not dag.is_paused
    return f"{dag.dag_id} {dag.is_paused}"


def _update_asset(choice: random.Random, session: Any) -> Any:
    from airflow.assets.manager import asset_manager
    from airflow.models.asset import AssetModel
    from sqlalchemy import select

    name = choice.choice("abc")
    asset = session.scalar(select(AssetModel).where(AssetModel.name == name))
    asset_manager.register_asset_change(asset=asset, session=session)
    return name


def _backfill(choice: random.Random, session: Any) -> Any:
    from airflow.models.backfill import AlreadyRunningBackfill, ReprocessBehavior, _create_backfill

    try:
        _create_backfill(
            dag_id="past",
            from_date=datetime(2024, 1, 1, tzinfo=timezone.utc),
            to_date=datetime(2024, 1, 2, tzinfo=timezone.utc),
            max_active_runs=choice.choice([1, 2]),
            reverse=False,
            dag_run_conf={},
            triggering_user_name="test",
            # The DAG's tasks depend on the past: only these two are allowed.
            reprocess_behavior=choice.choice([ReprocessBehavior.COMPLETED, ReprocessBehavior.FAILED]),
        )
    except AlreadyRunningBackfill:
        return "one is there"
    return "past"


def _limit(choice: random.Random, session: Any) -> Any:
    from airflow.models.pool import Pool
    from sqlalchemy import select

    pool = session.scalar(select(Pool).where(Pool.pool == "narrow"))
    pool.slots = choice.choice([0, 1, 2, -1])
    return pool.slots


def _one(choice: random.Random, session: Any, state: Any) -> Any:
    """Return any task instance in a state; None if there is none."""
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select

    order = (TaskInstance.dag_id, TaskInstance.run_id, TaskInstance.task_id, TaskInstance.map_index)
    found = session.scalars(select(TaskInstance).where(TaskInstance.state == state).order_by(*order)).all()
    return choice.choice(found) if found else None


HAPPENINGS: dict[Callable[[random.Random, Any], Any], int] = {
    _trigger: 8,
    _end: 10,
    _resume: 1,
    _clear: 3,
    _mark: 2,
    _finish: 2,
    _pause: 3,
    _update_asset: 3,
    _backfill: 1,
    _limit: 1,
}
"""What may happen, and how often, relatively."""

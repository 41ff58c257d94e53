"""Does the tick start a run exactly when one is due, and leave the database alone when nothing goes on?"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import modal
import psycopg2
import pytest

from airflow_provider_modal import airflow_settings, names
from airflow_provider_modal.config import EnvironmentConfig, SchedulerConfig
from airflow_provider_modal.db.connect import application_name
from airflow_provider_modal.db.lock import AdvisoryLock
from airflow_provider_modal.errors import UnreachableError
from airflow_provider_modal.names import ResourceNames
from airflow_provider_modal.scheduler import due, history, tick
from airflow_provider_modal.triggerer.health import Health
from airflow_provider_modal.volume import dag_versions
from airflow_provider_modal.volume.files import VolumeFiles
from local_modal.testing import LocalModal
from tests.support.modal_env import using
from tests.support.scheduler_app import SchedulerApp, scheduler_app


class Environment:
    """An environment whose runs only report, on a database with Airflow's tables."""

    def __init__(self, app: SchedulerApp, resources: ResourceNames, url: str) -> None:
        self.app = app
        self.url = url
        self.resources = resources
        self.environ = {
            **airflow_settings.function_environment(
                EnvironmentConfig(connection_string="", scheduler=SchedulerConfig(interval_seconds=60)),
                resources.env,
                "tick",
            ),
            airflow_settings.CONNECTION: url.replace("postgresql:", "postgresql+psycopg2:", 1),
        }
        modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
        self.files = VolumeFiles.open(resources)

    def tick(self) -> dict[str, Any]:
        return tick.tick({**os.environ, **self.environ})

    def has_run(self, outcome: str = history.DONE) -> None:
        """Leave what a run leaves that found everything in order, or failed."""
        journal = history.Journal(self.app.state, "the test")
        journal.begin()
        journal.has_lock()
        digest = dag_versions.snapshot(self.files).digest
        self.sql(
            "INSERT INTO dag_bundle (name, active, version) VALUES (%s, true, %s)"
            " ON CONFLICT (name) DO UPDATE SET version = excluded.version",
            names.BUNDLE_NAME,
            digest,
        )
        with psycopg2.connect(self.url) as connection:
            look = due.look(connection)
        connection.close()
        journal.end(outcome, look=look if outcome == history.DONE else None)

    def sql(self, statement: str, *parameters: Any) -> None:
        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters)
        finally:
            connection.close()


@pytest.fixture
def environment(local_modal: LocalModal, airflow_database: str) -> Iterator[Environment]:
    resources = ResourceNames(f"tick-{secrets.token_hex(4)}")
    with using(local_modal), scheduler_app(resources.env) as app:
        yield Environment(app, resources, airflow_database)


def test_a_tick_wakes_for_what_is_due_and_else_lets_the_database_sleep(environment: Environment) -> None:
    first = environment.tick()
    assert first["started"], "of an environment that never ran nothing is known"
    assert "no run has ended well" in environment.app.started()
    environment.app.taken()

    environment.has_run()
    quiet = environment.tick()
    assert (quiet["due"], quiet["started"], quiet["held"]) == ([], False, None)
    assert quiet["sleep_until"] > time.time() + 300

    # Asleep: not even a database that is gone is noticed.
    environment.environ[airflow_settings.CONNECTION] = "postgresql+psycopg2://x:hidden@127.0.0.1:1/gone"
    assert environment.tick()["asleep"]
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1"):
        environment.files.write("dags/new.py", b"import airflow")
        environment.tick()
    kept = environment.app.state[names.SLEEP_UNTIL_KEY]
    assert "can't be reached" in kept["error"] and "hidden" not in json.dumps(kept)
    environment.environ[airflow_settings.CONNECTION] = environment.url
    assert environment.tick()["due"] == ["DAG files must be parsed"]
    environment.app.started()
    environment.app.taken()


def test_whoever_wakes_or_runs_ends_the_sleep(environment: Environment) -> None:
    environment.has_run()
    assert environment.tick()["sleep_until"]
    assert environment.tick().get("asleep")
    environment.app.state.put(names.WAKE_KEY, {"reason": "a waker that died", "at": time.time() - 60})
    assert environment.tick()["due"] == ["a wake-up was not heard"]
    environment.app.started()
    environment.app.taken()
    # A run that took the wish and was killed.
    history.Journal(environment.app.state, "killed").begin()
    dead = environment.tick()
    assert dead["started"] and not dead["sleep_until"]
    environment.app.started()
    environment.app.taken()


def test_a_run_that_is_at_work_is_not_doubled(environment: Environment) -> None:
    environment.has_run()
    environment.sql("INSERT INTO slot_pool (pool, slots, include_deferred) VALUES ('new', 1, false)")
    own = application_name(environment.resources.env)
    with AdvisoryLock(environment.url, application_name=own) as lock:
        lock.acquire()
        busy = environment.tick()
        environment.app.state.put(names.WAKE_KEY, {"reason": "waits", "at": time.time() - 60})
        assert environment.tick()["held"] == "a run is at work", "the wish waits for a run of its own"
    assert (busy["started"], busy["held"]) == (False, "a run is at work")
    assert environment.tick()["started"]
    assert "limits changed" in environment.app.started()


def test_three_failed_runs_slow_the_schedule_down(environment: Environment) -> None:
    for _ in range(2):
        environment.has_run("failed")
    assert environment.tick()["started"]
    environment.app.started()
    environment.app.taken()
    environment.has_run("failed")
    slowed = environment.tick()
    assert (slowed["started"], slowed["held"]) == (False, "3 runs in a row have failed")
    records = history.read(environment.app.state)
    assert history.slowed_until(records, 60) == pytest.approx((records[-1].ended or 0) + 120)
    environment.has_run()
    assert environment.tick()["held"] is None


def test_a_wish_that_a_run_was_started_for_is_renewed(environment: Environment) -> None:
    environment.has_run()
    died_at = time.time() - 60
    environment.app.state.put(names.WAKE_KEY, {"reason": "a waker that died", "at": died_at})
    assert environment.tick()["started"]
    renewed = environment.app.state.get(names.WAKE_KEY)
    assert renewed is None or renewed["at"] > died_at
    environment.app.started()
    environment.app.taken()


def test_a_run_is_due_when_the_database_takes_too_long_to_answer(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.has_run()
    monkeypatch.setattr(due, "ANSWER_SECONDS", 1)
    connection = psycopg2.connect(environment.url)
    with connection.cursor() as cursor:
        cursor.execute("LOCK TABLE dag")
        found = environment.tick()
    connection.close()
    assert (found["due"], found["started"]) == (["the database could not say what is due"], True)
    environment.app.started()
    environment.app.taken()


def test_what_is_not_for_us_keeps_neither_the_tick_busy_nor_the_database_awake(
    environment: Environment,
) -> None:
    environment.has_run()
    waits = "triggers wait for a triggerer"
    environment.sql(
        "INSERT INTO trigger (classpath, kwargs, created_date, queue) VALUES ('x', '{}', now(), 'theirs')"
    )
    assert waits not in environment.tick()["due"]
    environment.sql("UPDATE trigger SET queue = NULL")
    assert waits in environment.tick()["due"]
    # One that fails again and again is started less often.
    environment.app.state.put(names.TRIGGERER_KEY, asdict(Health(3, time.time(), "it is broken")))
    assert waits not in environment.tick()["due"]

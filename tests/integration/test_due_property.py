"""Does the due-check say yes whenever a full run of Airflow's scheduler would change any row?

Asked over states that real DAG runs come into when things happen to them at random and schedulers are killed
at random. The check is given no time beyond what the database says (``margin=0``), because nothing here
happens at the same time.
"""

from __future__ import annotations

import random
import secrets
import time
from collections import Counter
from collections.abc import Callable

import psycopg2
import pytest

from airflow_provider_modal.scheduler import due, jobs
from local_modal.testing import wait_until
from tests.support import due_world
from tests.support.airflow_children import ENV, AirflowChildren

SETTINGS = due.Settings(silent=3600.0, heartbeat_timeout=3600.0, queued_timeout=3600.0)
"""Nobody sends heartbeats here; tasks whose end nobody tells stay running."""
NOTHING_IS_LEFT = """
    TRUNCATE dag_run, backfill, callback, trigger, asset_dag_run_queue, dag_priority_parsing_request CASCADE;
    UPDATE dag SET is_paused = true
"""
SCHEDULE = "tests.support.due_world:schedule"


class World:
    """A database that lives on, and copies of it in which a full run is tried."""

    def __init__(self, children: AirflowChildren, admin_url: str, choice: random.Random) -> None:
        self.children = children
        self.since: due.Look | None = None
        self.history: list[str] = []
        self._admin_url = admin_url
        self._choice = choice
        self._original = children.url

    def begin(self) -> None:
        self.children.parse(due_world.FILES)
        with self.children.connection() as connection:
            due_world.prepare(connection)
        self._look()
        self._schedule()

    def happen(self, count: int) -> None:
        seed = self._choice.randrange(10**9)
        self.history += self.children.run("tests.support.due_world:act", seed=seed, count=count)

    def be_scheduled_in_part(self) -> None:
        """Let a scheduler begin, and kill it."""
        self._end_predecessors()
        seconds = self._choice.uniform(0.05, 0.9)
        child = self.children.spawn(SCHEDULE, None, env=ENV, max_seconds=30.0)
        time.sleep(seconds)
        child.kill()  # if it has not ended already
        assert child.wait(20) is not None
        self.history.append(f"killed a scheduler after {seconds:.2f} s")

    def findings(self) -> due.Findings:
        self._be_left_alone()
        with self.children.connection() as connection:
            return due.check(connection, SETTINGS, since=self.since, margin=0.0)

    def full_run(self) -> list[str]:
        """Run the scheduler to its end in a copy, which becomes the world; return what changed."""
        name = f"test_{secrets.token_hex(6)}"
        before = self.children.url
        self._be_left_alone()
        self._admin(f'CREATE DATABASE "{name}" TEMPLATE "{before.rpartition("/")[2]}"')
        self.children.url = before.rpartition("/")[0] + f"/{name}"
        rows = due_world.rows(self.children.url)
        self._end_predecessors()
        self._look()
        self._schedule()
        self.history.append("a full run")
        changed = due_world.difference(rows, due_world.rows(self.children.url))
        if before != self._original:
            self._drop(before)
        return changed

    def settle(self) -> None:
        """End whatever is under way, and let a full run see that."""
        self.children.sql(NOTHING_IS_LEFT)
        self.full_run()

    def close(self) -> None:
        if self.children.url != self._original:
            self._drop(self.children.url)

    def _look(self) -> None:
        with self.children.connection() as connection:
            self.since = due.look(connection)

    def _schedule(self) -> None:
        done = self.children.run(SCHEDULE, env=ENV, max_seconds=300.0)
        assert done["stopped"] == "idle", (done, self.history[-12:])

    def _end_predecessors(self) -> None:
        with self.children.connection() as connection:
            jobs.end_predecessors(connection, ENV, jobs.SCHEDULER_JOB)

    def _be_left_alone(self) -> None:
        """Wait for the server to notice the end of killed clients: their last statement may still commit."""
        name = self.children.url.rpartition("/")[2]
        others = f"SELECT FROM pg_stat_activity WHERE datname = '{name}' AND backend_type = 'client backend'"
        wait_until(lambda: not self._admin(others), 60.0, "the database has no clients")

    def _drop(self, url: str) -> None:
        self._admin(f'DROP DATABASE "{url.rpartition("/")[2]}" WITH (FORCE)')

    def _admin(self, statement: str) -> int:
        """Execute a statement in another database; return how many rows it is about."""
        connection = psycopg2.connect(self._admin_url)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.rowcount
        finally:
            connection.close()


def test_whatever_a_full_run_would_change_is_due(
    airflow_children: AirflowChildren,
    postgres_url: str,
    pytestconfig: pytest.Config,
    caplog: pytest.LogCaptureFixture,
    record_property: Callable[[str, object], None],
) -> None:
    seed = pytestconfig.getoption("--due-seed") or 20240229
    steps = pytestconfig.getoption("--due-steps")
    choice = random.Random(seed)
    world = World(airflow_children, postgres_url, choice)
    outcomes: Counter[str] = Counter()
    needless: Counter[str] = Counter()
    try:
        world.begin()
        for step in range(steps):
            # Sometimes nothing happens: then nothing should be due either.
            if choice.random() < 0.8:
                world.happen(choice.choice([1, 1, 2, 4]))
            if choice.random() < 0.3:
                world.be_scheduled_in_part()
            began = time.time()
            found = world.findings()
            unanswered = [record.getMessage() for record in caplog.records if record.name == due.__name__]
            assert not unanswered
            changed = world.full_run()
            # What only the clock makes due after the check was announced by it.
            by_clock = found.next_at is not None and found.next_at <= found.now + (time.time() - began)
            outcomes[f"{'due' if found.reasons else 'not due'}, {'changed' if changed else 'unchanged'}"] += 1
            if found.reasons and not changed:
                needless.update(found.reasons)
            assert not changed or found.reasons or by_clock, (
                f"step {step} of seed {seed} was missed.\n"
                + "\n".join(world.history[-12:])
                + "\nchanged:\n"
                + "\n".join(changed[:40])
            )
        world.settle()
        found = world.findings()
        assert not found.reasons, f"a check that always says yes proves nothing: {found.reasons}"
        assert not world.full_run()
    finally:
        world.close()
    record_property("due_check", dict(outcomes))
    print(f"\nseed {seed}: {dict(outcomes)}; due although nothing changed: {dict(needless)}")
    assert outcomes["due, changed"]

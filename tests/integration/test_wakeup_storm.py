"""Is every wish heard by a run when many wake at once, and when wakers and runs die at random?

The runs are containers of a local Modal server, the work that they do is in a PostgreSQL database: whatever
was committed before a wish must be handled by a run. That no order of steps loses one is shown with a model
(``test_wakeup_model``); here the real parts are used.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

import modal
import psycopg2
import pytest

from airflow_provider_modal import names, provision, wakeup
from airflow_provider_modal.names import ResourceNames
from local_modal.testing import LocalModal, wait_until
from tests.support.modal_env import using

WAIT_SECONDS = 240.0
TICK_SECONDS = 3.0
GATE = 1


class Death(BaseException):
    """A waker's process is killed."""


class Storm:
    """An environment whose runs handle what is committed to a table."""

    def __init__(self, resources: ResourceNames, url: str, death_rate: float) -> None:
        self.resources = resources
        self.url = url
        self._execute(
            "CREATE TABLE work (id int PRIMARY KEY, handled boolean NOT NULL DEFAULT false);"
            "CREATE TABLE runs (id serial, reason text)"
        )
        state = modal.Dict.from_name(resources.state_dict, create_if_missing=True).hydrate()
        app = modal.App(resources.app, include_source=False)
        state_name, wake_key = resources.state_dict, names.WAKE_KEY

        def scheduler_run(reason: str) -> None:
            """Take the wish, read, work, commit; die at random in between."""
            import os
            import random

            import modal
            import psycopg2

            def step() -> None:
                if random.random() < death_rate:
                    os._exit(1)

            step()
            modal.Dict.from_name(state_name).pop(wake_key, None)
            step()
            connection = psycopg2.connect(url)
            with connection, connection.cursor() as cursor:
                cursor.execute("INSERT INTO runs (reason) VALUES (%s)", (reason,))
                cursor.execute("SELECT id FROM work WHERE NOT handled")
                found = [row[0] for row in cursor.fetchall()]
                step()
                cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", (GATE,))
                cursor.execute("UPDATE work SET handled = true WHERE id = ANY(%s)", (found,))
                step()
            connection.close()

        app.function(name=names.SCHEDULER_RUN, serialized=True, max_containers=1)(scheduler_run)
        app.deploy()
        self.state = state

    def end(self, number: int) -> None:
        """Commit a piece of work, then wake: what a task's end does."""
        self._execute("INSERT INTO work (id) VALUES (%s)", number)
        wakeup.request_run(self.resources, f"end of {number}")

    @contextmanager
    def runs_held(self) -> Iterator[None]:
        """Let no run go on after it has read what there is to do."""
        connection = psycopg2.connect(self.url)
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_lock(%s)", (GATE,))
            yield
        finally:
            connection.close()

    def tick(self) -> None:
        """Start a run if anything is left, whoever may have asked for one."""
        if self.unhandled():
            wakeup.request_run(self.resources, "the schedule", force=True)

    def unhandled(self) -> int:
        return int(self._execute("SELECT count(*) FROM work WHERE NOT handled")[0][0])

    def runs(self) -> int:
        return int(self._execute("SELECT count(*) FROM runs")[0][0])

    def _execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self.url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


@contextmanager
def _storm(server: LocalModal, url: str, *, death_rate: float = 0.0) -> Iterator[Storm]:
    resources = ResourceNames(f"storm-{secrets.token_hex(4)}")
    with using(server):
        try:
            yield Storm(resources, url, death_rate)
        finally:
            provision.destroy(resources.env)


def test_many_ends_at_once_cost_a_handful_of_runs(
    local_modal: LocalModal, fresh_database: str, pytestconfig: pytest.Config
) -> None:
    ends: int = pytestconfig.getoption("--wake-ends")
    with _storm(local_modal, fresh_database) as storm:
        with storm.runs_held(), ThreadPoolExecutor(16) as pool:
            list(pool.map(storm.end, range(ends)))
        wait_until(lambda: not storm.unhandled(), seconds=WAIT_SECONDS)
        # What the last run read may have been more than what it was asked for.
        wait_until(lambda: storm.state.get(names.WAKE_KEY) is None, seconds=WAIT_SECONDS)
        runs = storm.runs()
        print(f"\n{ends} ends cost {runs} runs")
        assert runs <= 2, "one that was at work, and one for all that came meanwhile"


def test_whoever_dies_nothing_is_left_undone(local_modal: LocalModal, fresh_database: str) -> None:
    choice = random.Random(1)
    with _storm(local_modal, fresh_database, death_rate=0.1) as storm:

        def end_or_die(number: int) -> None:
            """A third of the wakers are killed before they start the run that they asked for."""
            fate = choice.random()
            real = modal.Function.from_name(storm.resources.app, names.SCHEDULER_RUN)
            killed = mock.Mock()
            killed.spawn = mock.Mock(side_effect=Death)
            found = killed if fate < 0.33 else real
            with mock.patch.object(modal.Function, "from_name", return_value=found):
                try:
                    storm.end(number)
                except Death:
                    pass

        for number in range(24):
            end_or_die(number)
            if choice.random() < 0.2:
                storm.tick()

        next_tick = time.monotonic()

        def nothing_is_left() -> bool:
            nonlocal next_tick
            if time.monotonic() >= next_tick:
                storm.tick()
                next_tick = time.monotonic() + TICK_SECONDS
            return not storm.unhandled()

        wait_until(nothing_is_left, seconds=WAIT_SECONDS)

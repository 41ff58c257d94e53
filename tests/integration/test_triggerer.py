"""Do triggers run while there are any, and does nothing that happens to a triggerer lose one?"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modal import airflow_settings, names
from airflow_provider_modal.db.lock import AdvisoryLock
from airflow_provider_modal.triggerer import need
from airflow_provider_modal.triggerer.health import Health
from local_modal.testing import LocalModal, wait_until
from tests.support.modal_env import using
from tests.support.processes import is_running
from tests.support.scheduler_app import scheduler_app
from tests.support.scheduler_environment import Environment

DAG = """
from datetime import datetime
from airflow.sdk import DAG, task
with DAG("waits", schedule="@daily", start_date=datetime(2024, 1, 1), catchup=False):
    @task
    def lasts(): pass
    lasts()
"""
TRIGGER = """
import asyncio, os
from pathlib import Path
from airflow.triggers.base import BaseTrigger, TriggerEvent
class Appears(BaseTrigger):
    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)
    def serialize(self):
        return "own.Appears", {"folder": str(self.folder)}
    def note(self, text):
        with (self.folder / "notes").open("a") as notes:
            notes.write(f"{text} {os.getpid()} {os.getppid()}\\n")
    async def run(self):
        self.note("GENERATION")
        while not (self.folder / "file").exists():
            await asyncio.sleep(0.02)
        if (self.folder / "broken").exists():
            raise ValueError("it is broken")
        yield TriggerEvent("it is there")
    async def on_kill(self):
        self.note("cancelled")
"""
FILES = {"waits.py": DAG, "own.py": TRIGGER.replace("GENERATION", "first")}


class Waiting:
    """A task that is deferred until a file appears."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self.environment = environment
        self.folder = folder
        environment.ask("upload", files=FILES)
        environment.run()
        [(trigger,)] = environment.sql(
            "INSERT INTO trigger (classpath, kwargs, created_date) VALUES ('own.Appears', %s, now())"
            " RETURNING id",
            json.dumps({"folder": str(folder)}),
        )
        environment.sql(
            "UPDATE task_instance SET state = 'deferred', trigger_id = %s, next_method = 'go_on',"
            " next_kwargs = '{}'",
            trigger,
        )

    def fire(self) -> None:
        (self.folder / "file").touch()

    def notes(self) -> list[list[str]]:
        """What the trigger has noted: a word, its process and that process's parent."""
        path = self.folder / "notes"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def until(self, *words: str) -> None:
        wait_until(lambda: [note[0] for note in self.notes()] == [*words], 120, f"notes {words}")

    @property
    def state(self) -> Any:
        return self.environment.sql("SELECT state FROM task_instance")[0][0]


@pytest.fixture
def waiting(environment: Environment, tmp_path: Path) -> Waiting:
    return Waiting(environment, tmp_path)


def test_event_resumes_the_task_wakes_the_scheduler_and_is_in_the_log(
    environment: Environment, waiting: Waiting, local_modal: LocalModal
) -> None:
    with using(local_modal), scheduler_app(environment.name) as app:
        environment.begin("triggers")
        waiting.until("first")
        waiting.fire()
        assert app.started() == "a trigger fired"
        done = environment.holder.receive()
        [(run_id,)] = environment.sql("SELECT run_id FROM task_instance")
        log = "\n".join(environment.ask("log", task=["waits", run_id, "lasts"]))
    assert (done["outcome"], done["events"], done["children"]) == ("idle", 1, 1)
    [(state, arguments)] = environment.sql("SELECT state, next_kwargs::text FROM task_instance")
    assert (state, "it is there" in arguments) == ("scheduled", True)
    assert "Trigger fired event" in log
    assert environment.ask("triggers")["children"] == 0, "nothing is left to run"


def test_trigger_that_fails_has_its_task_fail_and_wakes_the_scheduler(
    environment: Environment, waiting: Waiting, local_modal: LocalModal
) -> None:
    (waiting.folder / "broken").touch()
    waiting.fire()
    with using(local_modal), scheduler_app(environment.name) as app:
        assert environment.ask("triggers")["outcome"] == "idle"
        assert app.started() == "a trigger fired"
    [(method, arguments)] = environment.sql("SELECT next_method, next_kwargs::text FROM task_instance")
    assert (waiting.state, method) == ("scheduled", "__fail__")
    assert "it is broken" in arguments


def test_killed_triggerer_is_replaced_by_the_next_at_once(environment: Environment, waiting: Waiting) -> None:
    environment.begin("triggers")
    waiting.until("first")
    [(_, trigger_process, supervisor)] = waiting.notes()
    os.kill(int(supervisor), signal.SIGKILL)
    assert environment.holder.receive()["outcome"] == "failed"
    wait_until(lambda: not is_running(int(trigger_process)), 30, "the process of the triggers has ended")
    environment.begin("triggers")
    waiting.until("first", "first")
    waiting.fire()
    done = environment.holder.receive()
    assert (done["predecessors"], done["events"], waiting.state) == (1, 1, "scheduled")


def test_changed_code_of_a_trigger_runs_at_once(environment: Environment, waiting: Waiting) -> None:
    [(before,)] = environment.sql("SELECT version FROM dag_bundle")
    environment.ask("upload", files={"own.py": TRIGGER.replace("GENERATION", "second")})
    environment.run()
    [(after,)] = environment.sql("SELECT version FROM dag_bundle")
    assert after != before
    environment.sql("UPDATE dag_bundle SET version = %s", before)
    environment.begin("triggers")
    waiting.until("first")
    environment.sql("UPDATE dag_bundle SET version = %s", after)
    waiting.until("first", "second")
    waiting.fire()
    done = environment.holder.receive()
    assert (done["outcome"], done["events"], done["children"]) == ("idle", 1, 2)


def test_time_used_up_hands_over(environment: Environment, waiting: Waiting, local_modal: LocalModal) -> None:
    with using(local_modal), scheduler_app(environment.name) as app:
        assert environment.ask("triggers", seconds=1.0)["outcome"] == "budget"
        assert app.triggers_started() == "hand-over"
    assert waiting.state == "deferred"


def test_triggerer_of_a_former_deployment_gives_way(
    environment: Environment, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(airflow_settings.DEPLOYMENT, "current")
    environment.begin("triggers", deployment="0former")
    waiting.until("first")
    [(_, trigger_process, supervisor)] = waiting.notes()
    with environment.connection() as connection:
        holder = f"modalflow:{environment.name}/triggers-0former"
        assert need.look(connection) == need.Need(True, holder)
        assert need.is_outdated(holder, environment.name)
        need.end(connection, holder)
        assert environment.holder.receive()["outcome"] == "lost the lock"
        assert need.look(connection) == need.Need(True, None)
    for pid in (trigger_process, supervisor):
        wait_until(_gone(int(pid)), 30, f"process {pid} has ended")
    waiting.until("first")
    waiting.fire()
    assert environment.ask("triggers")["events"] == 1


def _gone(pid: int) -> Callable[[], bool]:
    return lambda: not is_running(pid)


DEFERS_AGAIN = """
    CREATE FUNCTION defer_again() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT count(*) FROM job WHERE job_type = 'TriggererJob') = 2 THEN
            WITH made AS (INSERT INTO trigger (classpath, kwargs, created_date)
                          VALUES ('own.Appears', '{}', now()) RETURNING id)
            UPDATE task_instance SET state = 'deferred', trigger_id = made.id FROM made;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER defers_again AFTER UPDATE ON job FOR EACH ROW
    WHEN (old.end_date IS NULL AND new.end_date IS NOT NULL AND new.job_type = 'TriggererJob')
    EXECUTE FUNCTION defer_again()
"""
"""Something is deferred at the very moment when the first triggerer's child has decided to end. The other row
is what the scheduler's run left for the health check."""


def test_what_is_deferred_while_a_triggerer_ends_is_run_and_health_is_green_after(
    environment: Environment, waiting: Waiting
) -> None:
    environment.sql(DEFERS_AGAIN.replace("{}", json.dumps({"folder": str(waiting.folder)})))
    waiting.fire()
    done = environment.ask("triggers")
    assert (done["outcome"], done["children"], done["events"]) == ("idle", 2, 2)
    alive = "SELECT 1 FROM job WHERE job_type = 'TriggererJob' AND state = 'running' AND end_date IS NOT NULL"
    assert environment.sql(alive) == []
    environment.run()
    assert environment.sql(alive) == [(1,)]


def test_scheduler_starts_a_triggerer_once_until_it_has_shown(
    environment: Environment, waiting: Waiting, local_modal: LocalModal
) -> None:
    triggerer = AdvisoryLock(
        environment.url,
        application_name=need.holder_name(environment.name, {airflow_settings.DEPLOYMENT: "later"}),
        key=need.LOCK_KEY,
        owner="triggerer",
    )
    with using(local_modal), scheduler_app(environment.name) as app:
        app.state.put(names.TRIGGERER_KEY, asdict(Health(3, time.time(), "it is broken")))
        environment.run()
        assert not app.triggers_started_again(), "one that fails again and again is started less often"
        app.state.put(names.TRIGGERER_KEY, asdict(Health()))
        environment.run()
        assert app.triggers_started() == "something is deferred"
        environment.run()
        assert not app.triggers_started_again()
        triggerer.acquire()
        with triggerer:
            environment.run()
            assert triggerer.ping(), "one of a later deployment is left alone"
            assert not app.triggers_started_again()
        environment.run()
        assert app.triggers_started() == "something is deferred"

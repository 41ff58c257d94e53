"""A real executor in this process, against a local Modal with a stand-in for the worker."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local_modal.testing import LocalModal
from tests.support.task_rows import database, rows  # noqa: F401  (fixtures)

os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="modalflow-executor-airflow-"))

APP = Path(__file__).parent / "apps" / "stand_in_worker.py"
ENV = "stand-in"
_job_ids = itertools.count(1000)


@pytest.fixture(scope="module")
def modal_server() -> Iterator[LocalModal]:
    """A server of this module's own, which its tests may stop and start, with the stand-in deployed."""
    with LocalModal() as server:
        subprocess.run(
            [sys.executable, "-m", "modal", "deploy", str(APP)],
            env=server.env,
            check=True,
            capture_output=True,
            text=True,
        )
        yield server


@pytest.fixture
def settings(modal_server: LocalModal, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """This process as one that uses the server and the stand-in's environment."""
    import modal
    from modal.client import _Client

    from airflow_provider_modal.config import EnvironmentConfig, WorkerProfile
    from airflow_provider_modal.names import ResourceNames

    for name, value in modal_server.env.items():
        if name.startswith("MODAL_"):
            monkeypatch.setenv(name, value)
    for name, value in {
        "ENVIRONMENT": ENV,
        "RPC_TIMEOUT": "5",
        "SILENT_AFTER": "60",
        "SUBMIT_DEADLINE": "60",
    }.items():
        monkeypatch.setenv(f"AIRFLOW__MODAL__{name}", value)
    profiles = {name: WorkerProfile() for name in ("default", "broken", "scarce")}
    config = EnvironmentConfig(connection_string="", workers=profiles)
    monkeypatch.setenv("MODALFLOW_SETTINGS", json.dumps(config.to_settings()))
    # No scheduler has been here before; what one leaves is tested with a real database.
    monkeypatch.setattr("airflow_provider_modal.executors.database.open_cancellations", lambda seconds: [])
    monkeypatch.setattr("airflow_provider_modal.executors.database.open_callbacks", lambda: [])
    monkeypatch.setattr("airflow_provider_modal.executors.database.write_events", lambda events: None)
    # The SDK keeps one client per process, which may be another test's. Before 1.6 the name was another one.
    forget_client = getattr(_Client, "_set_env_client", None) or getattr(_Client, "set_env_client")  # noqa: B009
    forget_client(None)
    resources = ResourceNames(ENV)
    modal.Dict.from_name(resources.state_dict, create_if_missing=True).hydrate()
    modal.Queue.from_name(resources.events_queue, create_if_missing=True).hydrate()
    yield monkeypatch
    forget_client(None)


@pytest.fixture
def new_executor(settings: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes started executors, each a scheduler of its own; ends them afterwards."""
    from airflow_provider_modal.executors import ModalExecutor

    made: list[ModalExecutor] = []

    def make(parallelism: int = 32, job_id: int | None = None) -> ModalExecutor:
        executor = ModalExecutor(parallelism=parallelism)
        executor.job_id = job_id or next(_job_ids)
        executor.start()
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor.terminate()


class Loop:
    """A scheduler's loop around an executor, as short as it can be: heartbeats, and the events they make."""

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.events: dict[str, list[tuple[Any, Any]]] = {}
        self.longest_heartbeat = 0.0

    def queue(self, *task_ids: str, **values: Any) -> dict[str, str]:
        """Queue tasks, with values of their task instances; return their dispatches."""
        dispatches = {}
        for task_id in task_ids:
            item = workload(task_id, **values)
            dispatches[task_id] = str(item.ti.external_executor_id)
            self.executor.queue_workload(item, session=None)
        return dispatches

    def beat(self) -> None:
        before = time.monotonic()
        self.executor.heartbeat()
        self.longest_heartbeat = max(self.longest_heartbeat, time.monotonic() - before)
        for key, event in self.executor.get_event_buffer().items():
            self.events.setdefault(key.task_id, []).append(event)

    def until(self, condition: Callable[[], Any], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        self.beat()
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s; events: {self.events}"
            self.executor.wait_for_event(0.1)
            self.beat()

    def ended(self, *task_ids: str) -> bool:
        """Whether all these tasks have a last event."""
        return all(
            any(state in ("success", "failed") for state, _ in self.events.get(task_id, []))
            for task_id in task_ids
        )


@pytest.fixture
def new_loop(new_executor: Callable[..., Any]) -> Callable[..., Loop]:
    """Makes loops around new executors."""
    return lambda **options: Loop(new_executor(**options))


@pytest.fixture
def loop(new_loop: Callable[..., Loop]) -> Loop:
    """A loop around a new executor."""
    return new_loop()


def workload(task_id: str, **values: Any) -> Any:
    # Not before Airflow's home is set.
    from tests.support import recorded_executor

    return recorded_executor.workload(task_id, **values)


@pytest.fixture
def stand_in_starts(settings: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Returns the function calls that started a dispatch, by the stand-in's own record."""
    import modal

    record = modal.Dict.from_name("stand-in-starts", create_if_missing=True)

    def started(dispatch: str) -> list[str]:
        return [key.partition("/")[2] for key in list(record.keys()) if key.startswith(dispatch)]

    return started


@pytest.fixture
def release(settings: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets the stand-in end a task whose id begins with "held"."""
    import modal

    def go(task_id: str) -> None:
        modal.Dict.from_name("stand-in-starts", create_if_missing=True)[f"go/{task_id}"] = True

    return go


@pytest.fixture
def state_dict(settings: pytest.MonkeyPatch) -> Any:
    """The environment's state Dict."""
    import modal

    from airflow_provider_modal.names import ResourceNames

    return modal.Dict.from_name(ResourceNames(ENV).state_dict)

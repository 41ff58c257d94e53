"""Ten tasks a run that tell a recorder what they do, and one that eats all memory.

The port of the recorder is filled in before the upload.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.sdk import dag, get_current_context, task

PORT = int("RECORDER_PORT")
LONGEST = 2.0
SOON = timedelta(seconds=1)


def record(event: str) -> None:
    """Tell the recorder, and go on once it has written it down."""
    ti: Any = get_current_context()["ti"]
    message = {
        "event": event,
        "dag_id": ti.dag_id,
        "run_id": ti.run_id,
        "task_id": ti.task_id,
        "map_index": ti.map_index,
        "try": ti.try_number,
        "dispatch": os.environ.get("MODALFLOW_DISPATCH"),
        "container": os.environ.get("MODAL_TASK_ID"),
        "pid": os.getpid(),
    }
    with socket.create_connection(("127.0.0.1", PORT), timeout=120) as connection:
        connection.sendall(json.dumps(message).encode() + b"\n")
        connection.makefile().readline()


def work() -> None:
    """Begin, take as long as this task always takes, and end."""
    record("start")
    ti: Any = get_current_context()["ti"]
    time.sleep(random.Random(f"{ti.run_id}/{ti.task_id}/{ti.map_index}").uniform(0, LONGEST))
    record("end")


@dag(schedule=None, start_date=datetime(2025, 1, 1, tzinfo=timezone.utc), catchup=False, max_active_runs=1000)
def chaos() -> None:
    """Tasks of every kind."""

    @task(retries=5, retry_delay=SOON)
    def plain(number: int) -> None:
        work()

    @task(retries=5, retry_delay=SOON)
    def first() -> int:
        work()
        return 41

    @task(retries=5, retry_delay=SOON)
    def second(value: int) -> None:
        assert value == 41
        work()

    @task(retries=0, executor_config={"modal": {"on_container_loss": "rerun"}})
    def rerun() -> None:
        work()

    @task(retries=0)
    def once() -> None:
        work()

    @task(retries=5, retry_delay=SOON)
    def raises() -> None:
        record("start")
        if get_current_context()["ti"].try_number == 1:
            record("raise")
            raise ValueError("as intended")
        record("end")

    plain.expand(number=[1, 2, 3, 4, 5])
    second(first())
    rerun()
    once()
    raises()


@dag(schedule=None, start_date=datetime(2025, 1, 1, tzinfo=timezone.utc), catchup=False, max_active_runs=1000)
def chaos_hungry() -> None:
    """One task that needs more memory than it asks for."""

    @task(retries=0, executor_config={"modal": {"memory": 900}})
    def hungry() -> None:
        record("start")
        eaten = []
        while True:
            eaten.append(bytearray(b"x") * (5 * 2**20))
            time.sleep(0.01)

    hungry()


chaos()
chaos_hungry()

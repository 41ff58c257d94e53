"""Tasks that tell a recorder when user code starts and ends; RECORDER_PORT is replaced before the upload."""

from __future__ import annotations

import json
import os
import socket
from datetime import datetime, timezone

from airflow.sdk import dag, get_current_context, task

PORT = int("RECORDER_PORT")


def record(event: str, *, wait: bool = False) -> None:
    """Tell the recorder, and with ``wait`` stay here until it lets go."""
    context = get_current_context()
    message = {
        "event": f"{context['run_id']}:{event}",
        "wait": wait,
        "try": context["ti"].try_number,
        "container": os.environ.get("MODAL_TASK_ID"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "tmp": os.stat("/tmp").st_ino,
    }
    with socket.create_connection(("127.0.0.1", PORT)) as connection:
        connection.sendall(json.dumps(message).encode() + b"\n")
        connection.makefile().readline()


@dag(schedule=None, start_date=datetime(2025, 1, 1, tzinfo=timezone.utc), catchup=False)
def recorded_chain() -> None:
    """Three tasks one after the other; the first can be held."""

    @task
    def first() -> int:
        record("first", wait=True)
        return 1

    @task
    def second(value: int) -> int:
        record("second")
        return value + 1

    @task
    def third(value: int) -> int:
        record("third")
        return value + 1

    third(second(first()))


@dag(schedule=None, start_date=datetime(2025, 1, 1, tzinfo=timezone.utc), catchup=False)
def recorded_single() -> None:
    """One task that is held and has no retries."""

    @task(retries=0)
    def only() -> None:
        record("start", wait=True)
        record("end")

    only()


@dag(schedule=None, start_date=datetime(2025, 1, 1, tzinfo=timezone.utc), catchup=False)
def passed_on() -> None:
    """Values go from task to task, by mapping, too."""

    @task
    def several() -> list[str]:
        return ["a", "b" * 100_000]

    @task
    def longer(text: str) -> dict[str, str]:
        return {"text": text * 2}

    @task
    def together(values: list[dict[str, str]]) -> list[int]:
        return [len(value["text"]) for value in values]

    together(longer.expand(text=several()))


recorded_chain()
passed_on()
recorded_single()

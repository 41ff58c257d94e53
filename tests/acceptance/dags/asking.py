"""Tasks that ask for something by executor_config, and tell a recorder what they got; RECORDER_PORT is
replaced before the upload."""

from __future__ import annotations

import json
import os
import socket
from datetime import datetime, timezone

from airflow.sdk import dag, get_current_context, task

PORT = int("RECORDER_PORT")
TOLD = ("BASE_TOKEN", "TEAM_TOKEN", "GREETING", "MODALFLOW_ROLE")


def record(event: str, *, wait: bool = False) -> None:
    """Tell the recorder, and with ``wait`` stay here until it lets go."""
    message = {
        "event": f"{get_current_context()['run_id']}:{event}",
        "wait": wait,
        "container": os.environ.get("MODAL_TASK_ID"),
        "environ": {name: os.environ.get(name) for name in TOLD},
    }
    with socket.create_connection(("127.0.0.1", PORT)) as connection:
        connection.sendall(json.dumps(message).encode() + b"\n")
        connection.makefile().readline()


@dag(schedule=None, start_date=datetime(2025, 1, 1, tzinfo=timezone.utc), catchup=False)
def asking() -> None:
    """Independent tasks without retries."""

    @task(
        executor_config={
            "modal": {
                "gpu": "T4",
                "memory": [1024, 3000],
                "secrets": ["team-token"],
                "env": {"GREETING": "hello"},
            }
        }
    )
    def equipped() -> None:
        record("equipped", wait=True)

    @task
    def plain() -> None:
        record("plain")

    @task(executor_config={"modal": {"on_container_loss": "rerun"}})
    def twice() -> None:
        record("twice", wait=True)

    @task(executor_config={"modal": {"memroy": 4096}})
    def mistyped() -> None:
        record("mistyped")

    @task(executor_config={"modal": {"gpu": "H1000"}})
    def unknown_gpu() -> None:
        record("unknown_gpu")

    equipped()
    plain()
    twice()
    mistyped()
    unknown_gpu()


asking()

"""A run that misses its deadline, whose callback tells a recorder; RECORDER_PORT is replaced before the
upload."""

from __future__ import annotations

import json
import os
import socket
from datetime import datetime, timedelta, timezone

from airflow.sdk import DAG, DeadlineAlert, DeadlineReference, SyncCallback, task

PORT = int("RECORDER_PORT")


def record(event: str, *, wait: bool = False, **values: object) -> None:
    """Tell the recorder, and with ``wait`` stay here until it lets go."""
    message = {"event": event, "wait": wait, "container": os.environ.get("MODAL_TASK_ID"), **values}
    with socket.create_connection(("127.0.0.1", PORT)) as connection:
        connection.sendall(json.dumps(message).encode() + b"\n")
        connection.makefile().readline()


def tell(text: str) -> None:
    """The callback."""
    record("late", text=text)


with DAG(
    "late",
    schedule=None,
    start_date=datetime(2025, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(seconds=1),
        callback=SyncCallback(tell, kwargs={"text": "it takes too long"}),
    ),
):

    @task
    def waits() -> None:
        record("waits", wait=True)

    waits()

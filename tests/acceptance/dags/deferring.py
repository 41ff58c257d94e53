"""Tasks that wait without a container; RECORDER_PORT is replaced before the upload."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import Any

from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import DAG, BaseOperator, get_current_context
from airflow.triggers.base import BaseTrigger, TriggerEvent

PORT = int("RECORDER_PORT")


class Told(BaseTrigger):
    """Fires when the recorder lets go."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Name the class by its module in the DAG tree."""
        return "deferring.Told", {"run_id": self.run_id}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the recorder."""
        message = {
            "event": f"{self.run_id}:waits",
            "wait": True,
            "container": os.environ.get("MODAL_TASK_ID"),
        }
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        writer.write(json.dumps(message).encode() + b"\n")
        if await reader.readline():
            yield TriggerEvent("it was told")


class WaitUntilTold(BaseOperator):
    """Is deferred until the recorder lets go."""

    def execute(self, context: Any) -> None:
        """Defer."""
        self.defer(trigger=Told(context["run_id"]), method_name="resume")

    def resume(self, context: Any, event: str) -> str:
        """Tell the recorder."""
        run_id = get_current_context()["run_id"]
        message = {"event": f"{run_id}:resumed", "text": event, "container": os.environ.get("MODAL_TASK_ID")}
        with socket.create_connection(("127.0.0.1", PORT)) as connection:
            connection.sendall(json.dumps(message).encode() + b"\n")
            connection.makefile().readline()
        return event


with DAG("deferring", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=timezone.utc), catchup=False):
    until = "{{ (dag_run.run_after + macros.timedelta(seconds=1)).isoformat() }}"
    DateTimeSensorAsync(task_id="a_moment", target_time=until)
    WaitUntilTold(task_id="told")

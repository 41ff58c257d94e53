"""Tasks with packages that the image lacks: one by the requirements.txt beside this file, which needs it
while it is parsed; RECORDER_PORT is replaced before the upload."""

from __future__ import annotations

import json
import socket
import subprocess
from datetime import datetime, timezone

import greeter
from airflow.sdk import dag, get_current_context, task

PORT = int("RECORDER_PORT")


def record(event: str, said: str) -> None:
    """Tell the recorder what the packages said."""
    message = {"event": f"{get_current_context()['run_id']}:{event}", "said": said}
    with socket.create_connection(("127.0.0.1", PORT)) as connection:
        connection.sendall(json.dumps(message).encode() + b"\n")
        connection.makefile().readline()


@dag(
    dag_id=greeter.DAG_ID, schedule=None, start_date=datetime(2025, 1, 1, tzinfo=timezone.utc), catchup=False
)
def packaged() -> None:
    """Independent tasks without retries."""

    @task
    def of_the_file() -> None:
        record("of_the_file", subprocess.run(["greet"], capture_output=True, text=True, check=True).stdout)

    @task(executor_config={"modal": {"requirements": ["tone"]}})
    def of_its_own() -> None:
        import tone

        record("of_its_own", f"{greeter.DAG_ID}, {tone.TONE}")

    @task(executor_config={"modal": {"requirements": ["pydantic<2"]}})
    def impossible() -> None:
        record("impossible", "")

    of_the_file()
    of_its_own()
    impossible()


packaged()

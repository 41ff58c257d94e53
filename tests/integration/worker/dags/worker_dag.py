"""Tasks that tell somebody outside of Airflow what they do: RECORD is a file, or ``tcp:`` and a port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time

import airflow.configuration
from airflow.providers.standard.operators.python import PythonVirtualenvOperator
from airflow.sdk import DAG, BaseOperator, task
from airflow.sdk.log import mask_secret


def record(event: str, **values: object) -> None:
    where = os.environ["RECORD"]
    line = json.dumps({"event": event, "at": time.time(), "pid": os.getpid(), **values}) + "\n"
    if where.startswith("tcp:"):
        with socket.create_connection(("127.0.0.1", int(where[4:]))) as connection:
            connection.sendall(line.encode())
            connection.recv(10)
    else:
        with open(where, "a") as file:
            file.write(line)


def called_back(text: str) -> None:
    """The callback of a deadline."""
    record("called_back", text=text)
    if text == "fail":
        raise ValueError("the callback is wrong")


class Patient(BaseOperator):
    """Works until it is told to stop."""

    def execute(self, context: object) -> None:
        self.stopped = False
        record("started")
        while not self.stopped:
            time.sleep(0.02)
        record("stopped")
        raise RuntimeError("stopped by on_kill")

    def on_kill(self) -> None:
        record("on_kill")
        self.stopped = True


with DAG("worker_dag", schedule=None) as dag:

    @task
    def quick() -> str:
        record(
            "started",
            greeting=os.environ.get("GREETING"),
            context=os.environ["_AIRFLOW_PROCESS_CONTEXT"],
            # Where in memory: the same in all forks of the process that imported it, and in no other.
            airflow_at=id(airflow.configuration.conf),
        )
        print("printed by the task")
        mask_secret("Sup3rSecretWord")
        print("the word is Sup3rSecretWord")
        return "value"

    @task
    def greeted() -> None:
        import greeter

        said = subprocess.run(["greet"], capture_output=True, text=True, check=True).stdout
        keeps = hasattr(PythonVirtualenvOperator._ensure_venv_cache_exists, "__wrapped__")
        venv = os.environ["MODALFLOW_VENV"]
        record("greeted", greeter=greeter.__file__, said=said, venv=venv, keeps_caches=keeps)

    @task
    def deaf() -> None:
        """As a plain function is, which SIGTERM does not interrupt."""
        record("started")
        ends = time.monotonic() + 6
        while time.monotonic() < ends:
            time.sleep(0.1)

    @task
    def fails() -> None:
        record("started")
        raise ValueError("the task is wrong")

    @task(retries=1)
    def killed() -> None:
        record("started")
        os.kill(os.getpid(), signal.SIGKILL)

    @task
    def stubborn() -> None:
        record("started")
        while True:
            time.sleep(0.1)

    @task
    def supervisor_killed() -> None:
        record("started")
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    @task
    def hungry() -> None:
        eaten = []
        record("started")
        while True:
            eaten.append(bytearray(b"x") * (5 * 2**20))
            time.sleep(0.05)

    quick()
    deaf()
    greeted()
    hungry()
    fails()
    killed()
    stubborn()
    supervisor_killed()
    Patient(task_id="patient")

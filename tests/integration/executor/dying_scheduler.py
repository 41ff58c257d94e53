"""A scheduler that hands one task to Modal and is killed at a given moment of that."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any, NoReturn

from airflow_provider_modal.executors import ModalExecutor
from airflow_provider_modal.executors.gateway import Gateway
from tests.integration.executor.conftest import workload


def die(*_: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def main(moment: str, task_id: str, dispatch: str, job_id: int) -> None:
    note_call, events = Gateway.note_call, Gateway.events

    async def note_and_die(self: Gateway, dispatch: str, call_id: str) -> None:
        await note_call(self, dispatch, call_id)
        die()

    async def take_and_die(self: Gateway, partition: str) -> list[Any]:
        taken = await events(self, partition)
        return die() if taken else taken

    name, dying = {
        "not yet spawned": ("spawn", die),
        "spawned": ("note_call", die),
        "noted": ("note_call", note_and_die),
        "event taken": ("events", take_and_die),
    }[moment]
    setattr(Gateway, name, dying)
    executor = ModalExecutor(parallelism=4)
    executor.job_id = job_id
    executor.start()
    env = {"DATABASE": os.environ["DATABASE"]}
    executor.queue_workload(
        workload(task_id, external_executor_id=dispatch, executor_config={"modal": {"env": env}}),
        session=None,  # type: ignore[arg-type]
    )
    while True:
        executor.heartbeat()
        time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))

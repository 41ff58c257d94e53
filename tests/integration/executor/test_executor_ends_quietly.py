"""Does an executor end at once and without a word, whatever its talk with Modal was about?

In processes of their own: the SDK's complaints come when a process, or what it held, goes away.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from airflow_provider_modal.executors.gateway import POLL_SECONDS
from local_modal.clients import client_environ
from local_modal.testing import LocalModal
from tests.support.ports import closed_port

SCHEDULER = """
import gc, json, os, sys, time
from airflow_provider_modal.executors import ModalExecutor
moment, way = sys.argv[1:]
executor = ModalExecutor(parallelism=8)
executor.job_id = 1
executor.start()
executor.sync()
if moment == "learning":
    time.sleep(1)
elif moment != "idle":
    import modal
    executor._dispatcher.listen("job-1")
if moment == "polling":
    from airflow_provider_modal.names import ResourceNames
    queue = modal.Queue.from_name(ResourceNames("stand-in").events_queue)
    queue.put("taken by the poll", partition="job-1")
    while queue.len(partition="job-1"):
        time.sleep(0.01)
began = time.time()
executor.end()
ended = {"began": began, "seconds": time.time() - began, "modal": "modal" in sys.modules}
print(json.dumps(ended), flush=True)
gc.collect()
if way == "like a child of the zygote":
    os._exit(0)
"""
COMPLAINTS = ("never awaited", "Unclosed", "Traceback", "never retrieved", "not ended", "destroyed")


def _ended(environ: dict[str, str], moment: str, way: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCHEDULER, moment, way],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=True,
    )
    ended = time.time()
    assert not [complaint for complaint in COMPLAINTS if complaint in done.stdout], done.stdout
    result: dict[str, Any] = next(
        json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")
    )
    return {**result, "until the process ended": ended - result["began"]}


@pytest.mark.parametrize("way", ["like a child of the zygote", "like any process"])
@pytest.mark.parametrize("moment", ["connecting", "polling"])
def test_the_long_poll_ends_at_once_and_quietly(
    modal_server: LocalModal, settings: pytest.MonkeyPatch, moment: str, way: str
) -> None:
    seconds = _ended(modal_server.env, moment, way)["seconds"]
    assert seconds < POLL_SECONDS - 5, "waited for the poll's end"


def test_a_scheduler_without_anything_to_do_does_not_even_load_modal(
    modal_server: LocalModal, settings: pytest.MonkeyPatch
) -> None:
    assert not _ended(modal_server.env, "idle", "like any process")["modal"]


@pytest.mark.parametrize("way", ["like a child of the zygote", "like any process"])
def test_a_manifest_that_cannot_be_read_is_not_waited_for(settings: pytest.MonkeyPatch, way: str) -> None:
    settings.delenv("MODALFLOW_SETTINGS")
    with closed_port() as nobody:
        ended = _ended(client_environ(f"http://127.0.0.1:{nobody}", "as-unused"), "learning", way)
    assert ended["until the process ended"] < 25, "waited for the Volume's own deadline of 30 s"

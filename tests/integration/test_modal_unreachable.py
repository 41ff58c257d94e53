"""Does every path that talks to Modal keep its deadline when Modal can't be reached at all?

The SDK itself tries for about a minute to make its first connection. Each path runs in a process of its own,
since the SDK keeps one client per process; all at the same time, since they mostly wait.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from local_modal.clients import client_environ
from tests.support.ports import closed_port

BOUND = 40.0
"""Seconds for a path once everything is imported: a deadline of 2 on a busy machine. The SDK takes 57."""
IMPORTS = """
import modal
from airflow_provider_modal.cli import modal_access
from airflow_provider_modal.control import client
from airflow_provider_modal.executors import gateway
from airflow_provider_modal.volume import files
from airflow_provider_modal.worker import patience
print("imported", flush=True)
"""

VOLUME = """
import modal
from airflow_provider_modal.volume.files import VolumeFiles
VolumeFiles(modal.Volume.from_name("v"), deadline=2).{call}
"""
PATHS = {
    "volume read": (VOLUME.format(call="read('f')"), "can't read f of the Volume: Modal does not answer"),
    "volume list": (VOLUME.format(call="list('d')"), "can't list d of the Volume: Modal does not answer"),
    "volume write": (VOLUME.format(call="write('f', b'')"), "can't write f to the Volume: Modal does not"),
    "control": (
        """
from airflow_provider_modal import names
from airflow_provider_modal.control import client
client.SUBMIT_SECONDS = 2.0
client.ControlClient(names.ResourceNames("e")).call("dags.list")
""",
        "can't run operation dags.list in environment e: Modal does not answer",
    ),
    "worker": (
        """
import modal
from airflow_provider_modal.worker.patience import patiently
patiently("claim the dispatch", lambda: modal.Dict.from_name("d").put("k", 1), deadline=2)
""",
        "could not claim the dispatch: no answer within 2 s",
    ),
    "command line": (
        """
from airflow_provider_modal.cli import modal_access
modal_access.NOTE_SECONDS = 0.5
try:
    modal_access.probe(2.0)
except Exception as error:
    print(error)
""",
        "Modal has not answered so far; waiting for 1.5 s more ...\nModal does not answer at http://127.0.0.1",
    ),
    "executor": (
        """
import asyncio
from airflow_provider_modal import names
from airflow_provider_modal.executors import gateway
gateway.POLL_SECONDS = 1.0
modal = gateway.Gateway(names.ResourceNames("e"), rpc_timeout=2)
async def main():
    calls = [
        modal.spawn("execute_task", {}), modal.note_call("d", "fc-1"), modal.noted_call("d"),
        modal.result("d"), modal.cancel("fc-1"), modal.state_of("fc-1"), modal.events("p"),
    ]
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        print(type(outcome).__name__)
    await modal.close()
asyncio.run(main())
from airflow_provider_modal import wire
from airflow_provider_modal.executors.task_log import TaskLogs
answer = TaskLogs(names.ResourceNames("e")).read(wire.TaskKey("d", "t", "r", 1), "fc-1", timeout=2)
print(answer.lines, *answer.sources)
""",
        "TimeoutError\n" * 7
        + "[] The log can't be read at the moment: Modal has not answered in time. The task",
    ),
}


@pytest.fixture(scope="module")
def outputs() -> dict[str, str]:
    """What a process of each path says where nobody listens, or that it took too long."""
    with closed_port() as nobody, ThreadPoolExecutor(len(PATHS)) as pool:
        environ = client_environ(f"http://127.0.0.1:{nobody}", "as-unused")
        outputs = pool.map(lambda path: _output(IMPORTS + path[0], environ), PATHS.values())
        return dict(zip(PATHS, outputs, strict=True))


def _output(code: str, environ: dict[str, str]) -> str:
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "imported\n"
        try:
            return process.communicate(timeout=BOUND)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return f"it did not end within {BOUND:g} s"


@pytest.mark.parametrize("path", PATHS)
def test_the_deadline_is_kept_and_told(outputs: dict[str, str], path: str) -> None:
    assert PATHS[path][1] in outputs[path]

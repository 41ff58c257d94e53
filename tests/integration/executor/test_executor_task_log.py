"""What does a person read in a task's log that its worker did not get to write?"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import modal
import pytest
from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_provider_modal import names, wire
from airflow_provider_modal.executors import ModalExecutor, database, task_log
from airflow_provider_modal.log import reader, segments
from airflow_provider_modal.volume.files import VolumeFiles
from local_modal.testing import wait_until

ENV = "stand-in"
NO_HEARTBEAT = database.Live(job_id=None, dispatch=None, fresh=False)
_clock = itertools.count(1.0)


@pytest.fixture
def files(settings: Any) -> VolumeFiles:
    resources = names.ResourceNames(ENV)
    modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
    return VolumeFiles.open(resources)


def running(task_id: str, call_id: str | None = None) -> Any:
    """A task instance as the API server has it."""
    return SimpleNamespace(
        key=TaskInstanceKey("d", task_id, "r", 1, -1),
        external_executor_id=wire.external_executor_id(str(uuid.uuid4()), call_id),
    )


def ship(files: VolumeFiles, task_id: str, *contents: bytes) -> None:
    path = segments.task_log(wire.TaskKey("d", task_id, "r", 1))
    prefix = segments.segment_prefix(path, next(_clock), str(uuid.uuid4()))
    files.write_many({segments.segment_path(prefix, n): content for n, content in enumerate(contents, 1)})


def test_running_tasks_log_is_what_was_shipped(files: VolumeFiles, settings: pytest.MonkeyPatch) -> None:
    executor = ModalExecutor()
    ti = running("shipped", "fc-1")
    ship(files, "shipped", b'{"event": "one"}\n{"eve', b'nt": "two"}\n')
    sources, lines = executor.get_task_log(ti, 1)
    assert lines == ['{"event": "one"}', '{"event": "two"}']
    assert "fc-1" in sources[0] and "airflow-vol-stand-in" in sources[1]
    # Later segments are seen, former ones are not read again.
    read: list[str] = []
    read_many = VolumeFiles.read_many
    settings.setattr(
        VolumeFiles, "read_many", lambda self, paths: read_many(self, [read.append(p) or p for p in paths])
    )
    ship(files, "shipped", b'{"event": "three"}\n')
    assert executor.get_task_log(ti, 1)[1][2:] == ['{"event": "three"}']
    assert len(read) == 1
    # Of a long log, the end.
    settings.setattr(task_log, "MOST_BYTES", 20)
    sources, lines = executor.get_task_log(ti, 1)
    assert lines == ['{"event": "three"}']
    assert sources[2].startswith("Only its end is shown")


def test_what_no_worker_wrote_is_there_all_the_same(
    files: VolumeFiles, settings: pytest.MonkeyPatch, new_loop: Callable[[], Any]
) -> None:
    settings.setenv("AIRFLOW__MODAL__SILENT_AFTER", "2")
    waited_for = {TaskInstanceKey("d", task, "r", 1, -1): NO_HEARTBEAT for task in ("raise-1", "fail-1")}
    settings.setattr(database, "live", lambda seconds: waited_for)
    loop = new_loop()
    loop.queue("raise-1", "fail-1")
    loop.until(lambda: loop.ended("raise-1", "fail-1"), 60)

    # The reason that only the executor knows is in the log; the other worker writes its own.
    reason = loop.events["raise-1"][-1][1]
    assert "the stand-in was told to raise" in reason
    wait_until(lambda: reader.attempts(files, "d", "r", "raise-1"), 30, "the reason in the log")
    [line] = reader.read(files, "d", "r", "raise-1")
    assert f"ERROR - {reason}" in line
    assert not reader.attempts(files, "d", "r", "fail-1")

    # While there is no log, there is what the call printed, or a sentence.
    executor = ModalExecutor()
    sources, lines = executor.get_task_log(running("starts"), 1)
    assert len(sources) == 2 and lines == []
    [_, call_id] = loop.events["raise-1"][0][1].split("/")[:2]
    ti = running("starts", call_id)

    def printed() -> bool:
        return "RuntimeError: the stand-in was told to raise" in "\n".join(executor.get_task_log(ti, 1)[1])

    wait_until(printed, 30, "the call's output")

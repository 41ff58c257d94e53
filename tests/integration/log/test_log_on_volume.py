"""Is a log on a real Volume complete, in order and readable while it is written?"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest

from airflow_provider_modal import names, wire
from airflow_provider_modal.errors import NotFoundError
from airflow_provider_modal.log import reader, segments
from airflow_provider_modal.log.shipper import LogShipper
from airflow_provider_modal.log.task_log import TaskLog
from airflow_provider_modal.volume.files import VolumeFiles
from local_modal.testing import LocalModal, wait_until
from tests.support.modal_env import using

RUN = "manual__2026-01-01T00:00:00.000000+00:00"


@pytest.fixture(scope="module")
def files(local_modal: LocalModal) -> Iterator[VolumeFiles]:
    resources = names.ResourceNames(f"log-{uuid.uuid4().hex[:8]}")
    with using(local_modal):
        modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
        yield VolumeFiles.open(resources)


def log_of(dag: str, task: str, map_index: int = -1, attempt: int = 1) -> str:
    return segments.task_log(wire.TaskKey(dag, task, RUN, attempt, map_index))


def ship(files: VolumeFiles, tmp_path: Path, path: str, started: float, dispatch: str, *parts: bytes) -> None:
    local = tmp_path / dispatch
    shipper = LogShipper(
        files, local, segments.segment_prefix(path, started, dispatch), interval=0.02, segment_bytes=64
    )
    shipper.start()
    with local.open("ab", buffering=0) as file:
        for part in parts:
            file.write(part)
    assert shipper.finish(20)


def test_lines_span_segments_and_dispatches_keep_their_order(files: VolumeFiles, tmp_path: Path) -> None:
    path = log_of("order", "t")
    long = "ü" * 100
    ship(files, tmp_path, path, 2_000.0, "aaa", f"later {long}\n".encode(), b"end")
    ship(files, tmp_path, path, 1_000.0, "zzz", b"one\n", b"half a li")
    assert list(reader.read(files, "order", RUN, "t")) == ["one", "half a li", f"later {long}", "end"]


def test_tries_and_mapped_tasks_are_found(files: VolumeFiles, tmp_path: Path) -> None:
    for number, (task, index, attempt) in enumerate(
        [("g.m", 11, 1), ("a", -1, 1), ("g.m", 0, 1), ("a", -1, 2)]
    ):
        text = f"{task} {index} {attempt}".encode()
        ship(files, tmp_path, log_of("found", task, index, attempt), number, f"d{number}", text)
    assert reader.tasks(files, "found", RUN) == [("g.m", 11), ("a", -1), ("g.m", 0)]
    assert reader.attempts(files, "found", RUN, "a") == [1, 2]
    assert list(reader.read(files, "found", RUN, "a")) == ["a -1 2"]
    assert list(reader.read(files, "found", RUN, "a", try_number=1)) == ["a -1 1"]
    assert list(reader.read(files, "found", RUN, "g.m", map_index=11)) == ["g.m 11 1"]


def test_what_is_not_there_is_told(files: VolumeFiles, tmp_path: Path) -> None:
    ship(files, tmp_path, log_of("absent", "t"), 1.0, "absent", b"x\n")
    with pytest.raises(NotFoundError, match=f"no log of task other in run {RUN[:6]}"):
        reader.read(files, "absent", RUN, "other")
    with pytest.raises(NotFoundError, match=r"no log of try 7 of task t .* there are tries 1"):
        reader.read(files, "absent", RUN, "t", try_number=7)
    assert reader.attempts(files, "absent", "no run", "t") == []
    assert reader.tasks(files, "nothing", RUN) == []


def test_running_tasks_log_is_readable(files: VolumeFiles, tmp_path: Path) -> None:
    # A template of the user's own moves the local file only.
    path = "mine/running-t.txt"
    key = wire.TaskKey("running", "t", RUN, 1)
    log = TaskLog(files, tmp_path / "logs", path, key, started_at=1.0, dispatch="d1")
    log.begin("Modal container took the task", dispatch="d1", container="ta-1")
    local = tmp_path / "logs" / path
    with local.open("ab", buffering=0) as file:
        file.write(b'{"timestamp": "t", "level": "info", "event": "working"}\n')
    wait_until(lambda: reader.attempts(files, "running", RUN, "t"), 30, "the first segment")
    lines = list(reader.read(files, "running", RUN, "t"))
    assert "Modal container took the task dispatch=d1 container=ta-1" in lines[0]
    assert lines[1] == "[t] INFO - working"
    log.note("error", "it went wrong")
    log.end()
    log.close()
    assert list(reader.read(files, "running", RUN, "t"))[-1].endswith("ERROR - it went wrong")
    assert not local.exists()

"""Does everything that triggers write arrive, and does nothing stay on local disk that has?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_provider_modal import wire
from airflow_provider_modal.errors import UnreachableError
from airflow_provider_modal.log import segments, trigger_uploads
from airflow_provider_modal.triggerer import logs
from airflow_provider_modal.triggerer.logs import TriggerLogs


class Uploads:
    """A Volume that refuses on request."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.uploads = 0
        self.away = False

    def write_many(self, files: Mapping[str, bytes]) -> None:
        if self.away:
            raise UnreachableError("Modal does not answer")
        for path, content in files.items():
            assert self.stored.get(path, content) == content
            self.stored[path] = content
        self.uploads += 1

    def of(self, key: wire.TaskKey) -> bytes:
        prefix = segments.task_log(key)
        return b"".join(content for path, content in sorted(self.stored.items()) if path.startswith(prefix))


def key(number: int) -> wire.TaskKey:
    return wire.TaskKey("d", f"t{number}", "r", 1)


def write(folder: Path, number: int, content: bytes) -> Path:
    path = folder / logs.local_path(key(number), 1.0, 7, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(content)
    return path


def test_many_triggers_take_one_upload_per_look(tmp_path: Path) -> None:
    files = Uploads()
    shipping = TriggerLogs(files, tmp_path)
    paths = [write(tmp_path, number, b"waiting\nha") for number in range(100)]
    assert shipping.look() and files.uploads == 1
    assert shipping.look() and files.uploads == 1
    assert all(files.of(key(number)) == b"waiting\n" for number in range(100))
    for number, path in enumerate(paths[:50]):
        write(tmp_path, number, b"lf")
        logs.mark_finished(path)
    assert shipping.look() and files.uploads == 2
    assert files.of(key(1)) == b"waiting\nhalf" and files.of(key(60)) == b"waiting\n"
    # What has ended leaves nothing behind.
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 50


def test_what_could_not_be_shipped_is_kept_for_the_next_look(tmp_path: Path) -> None:
    files = Uploads()
    shipping = TriggerLogs(files, tmp_path)
    path = write(tmp_path, 1, b"one\n")
    files.away = True
    assert not shipping.look()
    write(tmp_path, 1, b"two\n")
    shipping.child_ended()
    assert not shipping.look(ending=True) and path.exists()
    files.away = False
    # A later child's trigger doesn't disturb it.
    write(tmp_path, 2, b"other\n")
    assert shipping.look()
    assert files.of(key(1)) == b"one\ntwo\n" and not path.exists()
    assert files.of(key(2)) == b"other\n"


def test_segments_say_that_they_are_a_triggers_and_which_is_the_last(tmp_path: Path) -> None:
    files = Uploads()
    with TriggerLogs(files, tmp_path):
        write(tmp_path, 1, b"one\n")
    found = [segments.parse(path) for path in files.stored]
    assert [(part.log, part.dispatch, part.last) for part in found if part] == [
        (segments.task_log(key(1)), f"{segments.TRIGGER}7-1", True)
    ]


def test_trigger_without_output_is_forgotten(tmp_path: Path) -> None:
    path = write(tmp_path, 1, b"")
    logs.mark_finished(path)
    assert TriggerLogs(Uploads(), tmp_path).look() and not path.exists()
    logs.mark_finished(tmp_path / "never written")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_other_logs_of_an_airflow_elsewhere_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path))
    started: list[object] = []
    monkeypatch.setattr(trigger_uploads, "_start", lambda: started.append(1))
    ti = SimpleNamespace(dag_id="d")
    for name in ("attempt=1.log", "attempt=1.log.trigger.x/y.log", "attempt=1.log.trigger.12.log"):
        trigger_uploads.offer(name, ti)
    assert not started, "there are no such files"
    (tmp_path / "attempt=1.log.trigger.12.log").write_bytes(b"line\n")
    trigger_uploads.offer("attempt=1.log.trigger.12.log", ti)
    assert trigger_uploads._waiting.get_nowait() == (ti, "12", b"line\n")
    monkeypatch.setenv("AIRFLOW__MODAL__SERVERLESS", "True")
    trigger_uploads.offer("attempt=1.log.trigger.12.log", ti)
    assert trigger_uploads._waiting.empty()


def test_log_begins_with_its_first_dated_line() -> None:
    dated = json.dumps({"timestamp": "2026-01-01T00:00:00.5Z"[:19] + "Z"}).encode()
    assert trigger_uploads._began(b"text\n[]\n" + dated) == 1767225600.0

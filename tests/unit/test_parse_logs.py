"""Do the logs of DAG files arrive, and are they gone from local disk then?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from airflow_provider_modal.errors import UnreachableError
from airflow_provider_modal.log import segments
from airflow_provider_modal.scheduler import parse_logs
from airflow_provider_modal.scheduler.parse_logs import ParseLogs


class Uploads:
    def __init__(self, away: bool = False) -> None:
        self.stored: dict[str, bytes] = {}
        self.uploads = 0
        self.away = away

    def write_many(self, files: Mapping[str, bytes]) -> None:
        if self.away:
            raise UnreachableError("Modal does not answer")
        self.stored.update(files)
        self.uploads += 1


def folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / "2026-01-01" / "modal-volume" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "latest").symlink_to("2026-01-01")
    return root


def ship(files: Uploads, root: Path) -> None:
    with ParseLogs(files, root, 1.0) as shipping:
        shipping._thread.join(60)


def test_each_file_has_a_log_of_its_own(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a.py.log": b"one\n", "b/a.py.log": b"two\nthree", "empty.py.log": b""})
    files = Uploads()
    ship(files, root)
    assert files.uploads == 1
    found = {part.log: content for path, content in files.stored.items() if (part := segments.parse(path))}
    day = "logs/dag_processor/2026-01-01/modal-volume"
    assert found == {f"{day}/a.py.log": b"one\n", f"{day}/b/a.py.log": b"two\nthree"}
    assert not list(root.rglob("*.log"))
    ship(files, root)
    assert files.uploads == 1


def test_large_logs_go_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse_logs, "UPLOAD_BYTES", 100)
    root = folder(tmp_path, {f"{n}.py.log": b"x" * 60 for n in range(6)})
    files = Uploads()
    ship(files, root)
    assert files.uploads == 3 and len(files.stored) == 6


def test_what_could_not_be_shipped_stays(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a.py.log": b"one\n"})
    ship(Uploads(away=True), root)
    assert len(list(root.rglob("*.log"))) == 1
    ship(Uploads(), tmp_path / "absent")

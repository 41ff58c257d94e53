"""Does everything that a task writes arrive, once, in order, in bounded pieces, whatever the uploads do?

The Volume here is a local folder with faults on request: a real one can't be told which upload to fail. The
real one is used in the integration tests.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from airflow_provider_modal.errors import UnreachableError
from airflow_provider_modal.log.shipper import SEGMENTS_PER_UPLOAD, LogShipper


class FaultyFiles:
    def __init__(self, faults: list[str] | None = None) -> None:
        self.faults = faults or []
        self.stored: dict[str, bytes] = {}
        self.uploads: list[dict[str, bytes]] = []
        self.released = threading.Event()

    def write_many(self, files: Mapping[str, bytes]) -> None:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "hangs":
            self.released.wait(60)
        if fault == "refused":
            raise UnreachableError("can't write: Modal does not answer")
        for path, content in files.items():
            assert self.stored.get(path, content) == content, "a segment changed after it was written"
            self.stored[path] = content
        self.uploads.append(dict(files))
        if fault == "answer lost":
            raise UnreachableError("can't write: the answer was lost")

    @property
    def text(self) -> bytes:
        return b"".join(content for _, content in sorted(self.stored.items()))


def wait_for(condition: object, seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < ends
        time.sleep(0.01)


def append(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(data)


def test_whole_lines_are_shipped_while_the_task_runs(tmp_path: Path) -> None:
    local, files = tmp_path / "log", FaultyFiles()
    shipper = LogShipper(files, local, "logs/x", interval=0.02)
    shipper.start()
    append(local, b"one\ntw")
    wait_for(lambda: files.text == b"one\n")
    append(local, b"o\nthree")
    wait_for(lambda: files.text == b"one\ntwo\n")
    assert shipper.finish(30)
    assert files.text == b"one\ntwo\nthree"
    assert sorted(files.stored) == ["logs/x.000001", "logs/x.000002", "logs/x.000003.end"]


def test_nothing_new_uploads_nothing_but_that_it_is_the_end(tmp_path: Path) -> None:
    local, files = tmp_path / "log", FaultyFiles()
    append(local, b"line\n")
    shipper = LogShipper(files, local, "logs/x", interval=0.01)
    shipper.start()
    wait_for(lambda: files.uploads)
    time.sleep(0.1)
    assert shipper.finish(30) and shipper.complete
    assert files.uploads == [{"logs/x.000001": b"line\n"}, {"logs/x.000002.end": b""}]


def test_no_file_is_no_error(tmp_path: Path) -> None:
    files = FaultyFiles()
    shipper = LogShipper(files, tmp_path / "absent", "logs/x", interval=0.01)
    shipper.start()
    assert shipper.finish(30) and not files.uploads


def test_large_log_in_bounded_pieces(tmp_path: Path) -> None:
    local, files = tmp_path / "log", FaultyFiles()
    chooser = random.Random(7)
    lines = [b"%06d " % n + b"x" * chooser.randrange(200) + b"\n" for n in range(5000)]
    lines.insert(2500, b"y" * 40_000)  # longer than a segment, without an end
    append(local, b"".join(lines))
    shipper = LogShipper(files, local, "logs/x", interval=0.01, segment_bytes=10_000)
    shipper.start()
    assert shipper.finish(30)
    assert files.text == b"".join(lines)
    assert max(map(len, files.stored.values())) <= 10_000
    assert max(map(len, files.uploads)) <= SEGMENTS_PER_UPLOAD


def test_failed_and_unanswered_uploads_are_repeated_as_they_were(tmp_path: Path) -> None:
    local = tmp_path / "log"
    files = FaultyFiles(["answer lost", "refused", "", "answer lost"])
    shipper = LogShipper(files, local, "logs/x", interval=0.01)
    shipper.start()
    expected = b""
    for number in range(30):
        line = b"line %d\n" % number
        append(local, line)
        expected += line
        time.sleep(0.005)
    assert shipper.finish(30)
    assert files.text == expected


def test_volume_that_does_not_answer_delays_the_end_by_the_deadline_only(tmp_path: Path) -> None:
    local, files = tmp_path / "log", FaultyFiles(["hangs"])
    append(local, b"line\n")
    shipper = LogShipper(files, local, "logs/x", interval=0.01)
    shipper.start()
    wait_for(lambda: not files.faults)
    started = time.monotonic()
    assert not shipper.finish(0.3)
    assert time.monotonic() - started < 30
    files.released.set()


def test_volume_that_keeps_refusing_is_given_up(tmp_path: Path) -> None:
    local, files = tmp_path / "log", FaultyFiles(["refused"] * 1000)
    append(local, b"line\n")
    shipper = LogShipper(files, local, "logs/x", interval=0.01)
    shipper.start()
    assert not shipper.finish(0.5)
    assert files.stored == {}

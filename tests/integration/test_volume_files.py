from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest

from airflow_provider_modal.errors import NotFoundError, UnreachableError
from airflow_provider_modal.volume.files import VolumeFiles
from local_modal.clients import client_environ
from local_modal.testing import LocalModal
from tests.support.modal_env import using


@pytest.fixture(scope="module", autouse=True)
def _modal(local_modal: LocalModal) -> Iterator[None]:
    with using(local_modal):
        yield


@pytest.fixture
def volume() -> modal.Volume:
    name = f"files-{uuid.uuid4().hex[:8]}"
    return modal.Volume.from_name(name, version=2, create_if_missing=True).hydrate()


@pytest.fixture
def files(volume: modal.Volume) -> VolumeFiles:
    return VolumeFiles(volume)


def test_what_was_written_is_read_by_another_client(files: VolumeFiles, volume: modal.Volume) -> None:
    files.write("a/b c+d:e.txt", b"\x00\x01 content\x00")

    assert VolumeFiles(modal.Volume.from_name(str(volume.name))).read("a/b c+d:e.txt") == (
        b"\x00\x01 content\x00"
    )


@pytest.mark.parametrize("content", [b"", b"x" * (9 * 1024 * 1024 + 1)], ids=["empty", "two blocks"])
def test_a_file_of_any_size_comes_back(files: VolumeFiles, content: bytes) -> None:
    files.write("file", content)

    assert files.read("file") == content


def test_a_file_is_replaced_as_a_whole(files: VolumeFiles) -> None:
    files.write("pointer", b"a long first content")
    files.write("pointer", b"short")

    assert files.read("pointer") == b"short"


def test_many_are_written_at_once_from_memory_and_from_disk(files: VolumeFiles, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"from disk")
    files.write_many({"x/1": b"from memory", "x/2": tmp_path / "local"})
    files.write_many({})

    assert files.read_many(["x/1", "x/2"]) == {"x/1": b"from memory", "x/2": b"from disk"}


def test_a_missing_file_is_told_and_a_missing_folder_is_empty(files: VolumeFiles) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/file"):
        files.read("nowhere/file")
    assert files.list("nowhere", recursive=True) == []


def test_a_listing_has_paths_from_the_root_sizes_and_times(files: VolumeFiles) -> None:
    before = time.time()
    files.write_many({"d/one": b"1", "d/sub/two": b"22"})

    flat, deep = files.list("d"), files.list("d", recursive=True)

    assert [(entry.path, entry.is_dir) for entry in flat] == [("d/one", False), ("d/sub", True)]
    assert [(e.path, e.size) for e in deep if e.is_file] == [("d/one", 1), ("d/sub/two", 2)]
    assert all(before - 2 <= entry.mtime <= time.time() + 2 for entry in deep)
    assert [entry.path for entry in files.list("")] == ["d"]


def test_removing_twice_is_removing(files: VolumeFiles) -> None:
    files.write_many({"d/one": b"1", "d/two": b"2"})

    files.remove("d/one")
    files.remove("d/one")
    assert [entry.path for entry in files.list("d")] == ["d/two"]
    files.remove("d", recursive=True)
    files.remove("d", recursive=True)
    assert files.list("d") == []


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", ""])
def test_paths_that_leave_the_root_are_refused(files: VolumeFiles, path: str) -> None:
    with pytest.raises(ValueError):
        files.write(path, b"")
    with pytest.raises(ValueError):
        files.read(path)
    with pytest.raises(ValueError):
        files.read_immutable(path)
    with pytest.raises(ValueError):
        files.remove(path)


def test_an_immutable_file_is_read_from_the_mount_or_else_from_modal(
    volume: modal.Volume, tmp_path: Path
) -> None:
    files = VolumeFiles(volume, mount=tmp_path)
    files.write_many({"old": b"the same", "new": b"came after the mount"})
    (tmp_path / "old").write_bytes(b"as mounted")

    assert files.read_immutable("old") == b"as mounted"
    assert files.read_immutable("new") == b"came after the mount"
    assert files.read("old") == b"the same"


def test_a_volume_that_does_not_exist_is_not_an_empty_one() -> None:
    files = VolumeFiles(modal.Volume.from_name(f"no-{uuid.uuid4().hex[:8]}"))

    for use in (lambda: files.list("dags"), lambda: files.read("x"), lambda: files.write("x", b"")):
        with pytest.raises(NotFoundError, match="modalflow create"):
            use()


def test_it_works_where_an_event_loop_runs(files: VolumeFiles) -> None:
    async def inside() -> bytes:
        files.write("x", b"from a loop")
        return files.read("x")

    assert asyncio.run(inside()) == b"from a loop"


def test_threads_share_it(files: VolumeFiles) -> None:
    def write(number: int) -> None:
        files.write(f"t/{number}", str(number).encode())

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert files.read_many(f"t/{n}" for n in range(8)) == {f"t/{n}": str(n).encode() for n in range(8)}


def test_a_modal_that_accepts_and_never_answers_is_told_within_the_deadline() -> None:
    """In a process of its own: the SDK keeps one client per process."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = (
            "import modal, sys, time\n"
            "from airflow_provider_modal.volume.files import VolumeFiles\n"
            "from airflow_provider_modal.errors import UnreachableError\n"
            "began = time.monotonic()\n"
            "try: VolumeFiles(modal.Volume.from_name('v'), deadline=1.5).read('x')\n"
            "except UnreachableError as error: print(error, '#', time.monotonic() - began)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=client_environ(f"http://127.0.0.1:{silent.getsockname()[1]}", "as-unused"),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert "can't read x of the Volume: Modal does not answer" in done.stdout, done.stderr
    assert float(done.stdout.rpartition("#")[2]) < 30, "the SDK's own patience is a minute"


def test_what_failed_in_passing_is_repeated(
    files: VolumeFiles, volume: modal.Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write("x", b"content")
    failures = iter([modal.exception.ServiceError("just now"), ConnectionResetError("reset")])
    read = files._read

    async def flaky(path: str) -> bytes:
        for failure in failures:
            raise failure
        return await read(path)

    monkeypatch.setattr(files, "_read", flaky)

    assert files.read("x") == b"content"


def test_what_fails_for_good_is_not_repeated(files: VolumeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    async def refused(path: str) -> bytes:
        calls.append(path)
        raise modal.exception.InvalidError("never")

    monkeypatch.setattr(files, "_read", refused)

    with pytest.raises(modal.exception.InvalidError):
        files.read("x")
    assert calls == ["x"]


def test_what_keeps_failing_ends_with_a_sentence(
    volume: modal.Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = VolumeFiles(volume, deadline=1.0)

    async def away(path: str) -> bytes:
        raise modal.exception.ServiceError("overloaded")

    monkeypatch.setattr(files, "_read", away)

    with pytest.raises(UnreachableError, match="overloaded"):
        files.read("x")

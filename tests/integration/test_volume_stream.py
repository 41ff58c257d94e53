from __future__ import annotations

import io
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import modal
import pytest

from airflow_provider_modal.volume import files as volume_files
from airflow_provider_modal.volume.files import VolumeFiles
from airflow_provider_modal.volume.streams import BLOCK_BYTES
from local_modal.testing import LocalModal
from tests.support.modal_env import using

BLOCK_REQUESTS = "HTTP GET /*"


@pytest.fixture(scope="module", autouse=True)
def _modal(local_modal: LocalModal) -> Iterator[None]:
    with using(local_modal):
        yield


@pytest.fixture
def volume() -> modal.Volume:
    name = f"stream-{uuid.uuid4().hex[:8]}"
    return modal.Volume.from_name(name, version=2, create_if_missing=True).hydrate()


@pytest.fixture
def files(volume: modal.Volume) -> VolumeFiles:
    return VolumeFiles(volume)


def large(blocks: int) -> bytes:
    """Return a content whose blocks differ and end in zeros, which Modal does not store."""
    return b"".join(f"block {number}".encode().ljust(BLOCK_BYTES, b"\0") for number in range(blocks))


def test_a_large_file_streams_to_and_from_disk(files: VolumeFiles, tmp_path: Path) -> None:
    content = large(3) + os.urandom(1000)
    (tmp_path / "local").write_bytes(content)

    with (tmp_path / "local").open("rb") as opened:
        opened.seek(7)
        files.write_many({"path": tmp_path / "local", "rest": opened, "memory": io.BytesIO(b"small")})
    size = files.download("rest", tmp_path / "back")

    assert size == len(content) - 7
    assert (tmp_path / "back").read_bytes() == content[7:]
    assert b"".join(files.read_stream("path")) == content
    assert files.read("memory") == b"small"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "local"]


def test_a_stream_fetches_no_more_than_is_wanted(
    local_modal: LocalModal, files: VolumeFiles, tmp_path: Path
) -> None:
    blocks = 4 * (os.cpu_count() or 1) + 8
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(blocks * BLOCK_BYTES)
    files.write("large", tmp_path / "sparse")

    with local_modal.fault("latency", rpc=BLOCK_REQUESTS, delay=0.001) as requests:
        with closing(files.read_stream("large")) as chunks:
            assert next(chunks) == bytes(BLOCK_BYTES)
        fetched = requests.struck

    assert 1 <= fetched < blocks


def test_a_range_holds_what_it_covers(files: VolumeFiles, tmp_path: Path, volume: modal.Volume) -> None:
    content = large(2) + b"the end"
    files.write("file", content)
    (tmp_path / "file").write_bytes(content)
    ranges = [(0, 7), (BLOCK_BYTES - 3, 10), (2 * BLOCK_BYTES + 4, 100), (5 * BLOCK_BYTES, 1), (3, 0)]

    for place in (files, VolumeFiles(volume, mount=tmp_path)):
        for start, length in ranges:
            found = place.read_range("file", start, length, immutable=True)
            assert found == content[start : start + length]
    with pytest.raises(ValueError, match="-1"):
        files.read_range("file", -1, 5)


def test_an_immutable_file_streams_from_the_mount(volume: modal.Volume, tmp_path: Path) -> None:
    files = VolumeFiles(volume, mount=tmp_path)
    files.write("file", b"later")
    (tmp_path / "file").write_bytes(b"as mounted")

    assert b"".join(files.read_stream("file", immutable=True)) == b"as mounted"
    assert b"".join(files.read_stream("file")) == b"later"


def test_a_broken_stream_goes_on_where_it_was(local_modal: LocalModal, files: VolumeFiles) -> None:
    content = large(3 * (os.cpu_count() or 1))
    files.write("large", content)
    found = []

    with closing(files.read_stream("large")) as chunks:
        found.append(next(chunks))
        # More often than the SDK itself repeats a block.
        with local_modal.fault("http-cut", rpc=BLOCK_REQUESTS, count=6) as cut:
            found.extend(chunks)
            assert cut.struck == 6

    assert b"".join(found) == content


@pytest.mark.parametrize("fault", ["twice", "lose"])
def test_a_repeated_upload_is_one_upload(
    local_modal: LocalModal, files: VolumeFiles, volume: modal.Volume, fault: str
) -> None:
    with local_modal.fault(fault, rpc="VolumePutFiles2", object=volume.name, count=2) as repeated:
        files.write_many({"a/1": b"one", "a/2": b"two"})
        assert repeated.struck == 2

    assert files.read_many(["a/1", "a/2"]) == {"a/1": b"one", "a/2": b"two"}
    assert [entry.path for entry in files.list("a")] == ["a/1", "a/2"]


def test_thousands_of_files_go_up_in_a_few_requests(
    local_modal: LocalModal, files: VolumeFiles, volume: modal.Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_files, "FILES_PER_UPLOAD", 10)
    # Contents that the server has not got from another test: those it would not ask for.
    contents = {f"many/{number}": os.urandom(16) for number in range(25)}

    with local_modal.fault("latency", rpc="VolumePutFiles2", object=volume.name, delay=0.001) as uploads:
        files.write_many(contents)
        # Each upload asks which blocks are missing and then names them.
        assert uploads.struck == 6

    assert files.read_many(contents) == contents


def test_missing_files_leave_nothing_behind(files: VolumeFiles, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/file"):
        next(files.read_stream("nowhere/file"))
    with pytest.raises(FileNotFoundError, match="nowhere/file"):
        files.download("nowhere/file", tmp_path / "local")
    with pytest.raises(FileNotFoundError):
        files.write("x", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="does not stay below"):
        files.read_stream("../x")
    assert list(tmp_path.iterdir()) == []


def test_a_local_copy_of_an_upload_does_not_stay(
    files: VolumeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    files.write("x", io.BytesIO(b"content"))

    assert files.read("x") == b"content"
    assert list(tmp_path.iterdir()) == []

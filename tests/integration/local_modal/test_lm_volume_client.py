"""Volumes from outside of containers, through the stock SDK and command line, in both versions."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import modal
import pytest
from modal.exception import AlreadyExistsError, InvalidError, NotFoundError
from modal.types import FileEntryType

from local_modal.testing import LocalModal
from tests.integration.local_modal.conftest import modal as modal_cli
from tests.integration.local_modal.conftest import modal_command
from tests.integration.local_modal.sdk import connected, unique

BLOCK = 8 * 2**20
LARGE = os.urandom(BLOCK - 3) + bytes(10) + os.urandom(100) + bytes(BLOCK) + b"end"
"""Over three blocks, of which one ends and one consists of zero bytes, which travel separately."""


@pytest.fixture(scope="module")
def sdk(local_modal: LocalModal) -> Iterator[modal.Client]:
    with connected(local_modal) as client:
        yield client


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def volume(request: pytest.FixtureRequest, sdk: modal.Client) -> modal.Volume:
    return modal.Volume.from_name(unique("volume"), create_if_missing=True, version=request.param, client=sdk)


def put(volume: modal.Volume, force: bool = False, **contents: bytes) -> None:
    with volume.batch_upload(force=force) as batch:
        for name, content in contents.items():
            batch.put_file(io.BytesIO(content), "/" + name.replace("__", "/"))


def read(volume: modal.Volume, path: str) -> bytes:
    return b"".join(volume.read_file(path))


def names(volume: modal.Volume, path: str = "/", recursive: bool = True) -> list[str]:
    return sorted(entry.path for entry in volume.listdir(path, recursive=recursive))


@pytest.mark.parametrize(
    "content",
    [b"hello", b"", bytes(100), b"trailing\0\0", bytes(BLOCK), os.urandom(BLOCK), LARGE],
    ids=["text", "empty", "zeros", "trailing-zeros", "zero-block", "one-block", "large"],
)
def test_what_is_uploaded_is_read_again(volume: modal.Volume, content: bytes) -> None:
    put(volume, d__f=content)
    assert read(volume, "/d/f") == content
    target = io.BytesIO()
    assert volume.read_file_into_fileobj("d/f", target) == len(content)
    assert target.getvalue() == content
    (entry,) = volume.listdir("d/f")
    assert (entry.path, entry.type, entry.size) == ("d/f", FileEntryType.FILE, len(content))
    assert entry.mtime > 1_600_000_000


def test_a_directory_is_uploaded(volume: modal.Volume, tmp_path: Path) -> None:
    for name in ("a.txt", "sub/b.txt", "sub/deeper/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    with volume.batch_upload() as batch:
        batch.put_directory(tmp_path, "/copy")
    assert names(volume) == [
        *("copy", "copy/a.txt", "copy/sub", "copy/sub/b.txt"),
        *("copy/sub/deeper", "copy/sub/deeper/c.txt"),
    ]
    assert names(volume, "/copy", recursive=False) == ["copy/a.txt", "copy/sub"]
    assert [entry.path for entry in volume.iterdir("copy/sub")] == [
        *("copy/sub/b.txt", "copy/sub/deeper", "copy/sub/deeper/c.txt")
    ]
    assert read(volume, "copy/sub/deeper/c.txt") == b"sub/deeper/c.txt"


def test_an_existing_file_is_only_overwritten_by_force(volume: modal.Volume) -> None:
    put(volume, f=b"old")
    with pytest.raises(FileExistsError, match="'/f' already exists"):
        put(volume, f=b"new", g=b"not uploaded either")
    assert names(volume) == ["f"]
    assert read(volume, "f") == b"old"
    put(volume, force=True, f=b"new")
    assert read(volume, "f") == b"new"


def test_a_directory_is_not_overwritten_even_by_force(volume: modal.Volume) -> None:
    put(volume, d__f=b"x")
    with pytest.raises(FileExistsError, match="directory"):
        put(volume, force=True, d=b"file")


def test_what_is_missing(volume: modal.Volume) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: read(volume, "nope"),
        lambda: volume.read_file_into_fileobj("nope", io.BytesIO()),
        lambda: volume.remove_file("nope"),
    ]
    for attempt in attempts:
        with pytest.raises(FileNotFoundError, match="No such file or directory: 'nope'"):
            attempt()
    for attempt in (lambda: volume.listdir("nope"), lambda: volume.copy_files(["nope"], "x")):
        with pytest.raises(NotFoundError, match="No such file or directory: 'nope'"):
            attempt()


def test_files_are_removed(volume: modal.Volume) -> None:
    put(volume, d__a=b"a", d__b=b"b", c=b"c")
    volume.remove_file("/d/a")
    assert names(volume) == ["c", "d", "d/b"]
    with pytest.raises(InvalidError, match="recursively"):
        volume.remove_file("d")
    volume.remove_file("d", recursive=True)
    assert names(volume) == ["c"]


def test_files_are_copied(volume: modal.Volume) -> None:
    put(volume, a=b"a", d__b=b"b")
    volume.copy_files(["a"], "a2")
    volume.copy_files(["a", "a2"], "d")
    assert names(volume) == ["a", "a2", "d", "d/a", "d/a2", "d/b"]
    assert read(volume, "d/a2") == b"a"


def test_directories_are_copied_in_version_2(sdk: modal.Client) -> None:
    with modal.Volume.ephemeral(client=sdk, version=2) as volume:
        put(volume, d__b=b"b")
        volume.copy_files(["d"], "e", recursive=True)
        assert names(volume) == ["d", "d/b", "e", "e/b"]


def test_no_path_leads_out(volume: modal.Volume) -> None:
    with pytest.raises(InvalidError, match=r"'\.\.' is not allowed"):
        with volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"x"), "../../etc/passwd")
    with pytest.raises(InvalidError, match=r"'\.\.' is not allowed"):
        read(volume, "../../etc/passwd")


def test_versions_are_told_apart(sdk: modal.Client) -> None:
    name = unique("versioned")
    modal.Volume.objects.create(name, version=2, client=sdk)
    with pytest.raises(InvalidError, match="has version v2, not v1"):
        modal.Volume.from_name(name, version=1, client=sdk).hydrate()
    modal.Volume.from_name(name, client=sdk).hydrate()
    modal.Volume.from_name(name, version=2, client=sdk).hydrate()


def test_volumes_are_listed_renamed_and_deleted(sdk: modal.Client) -> None:
    name, taken, renamed = unique("volume"), unique("taken"), unique("renamed")
    for created in (name, taken):
        modal.Volume.objects.create(created, version=2, client=sdk)
    volume = modal.Volume.from_name(name, client=sdk)
    put(volume, f=b"x")
    with pytest.raises(AlreadyExistsError):
        modal.Volume.rename(name, taken, client=sdk)
    modal.Volume.rename(name, renamed, client=sdk)
    assert renamed in [found.name for found in modal.Volume.objects.list(client=sdk)]
    with pytest.raises(NotFoundError):
        modal.Volume.from_name(name, client=sdk).hydrate()
    assert read(modal.Volume.from_name(renamed, client=sdk), "f") == b"x"
    modal.Volume.objects.delete(renamed, client=sdk)
    with pytest.raises(NotFoundError):
        volume.listdir("/")


def test_commit_and_reload_need_a_container(volume: modal.Volume) -> None:
    for method in (volume.commit, volume.reload):
        with pytest.raises(RuntimeError, match="only possible from within a container"):
            method()


def test_an_interrupted_upload_changes_nothing(volume: modal.Volume) -> None:
    put(volume, f=b"old")
    with pytest.raises(ZeroDivisionError):
        with volume.batch_upload(force=True) as batch:
            batch.put_file(io.BytesIO(b"new"), "/f")
            raise ZeroDivisionError
    assert read(volume, "f") == b"old"


def test_everything_answered_survives_kill_nine(fresh_local_modal: LocalModal) -> None:
    with connected(fresh_local_modal) as sdk:
        volumes = []
        for version in (1, 2):
            kept = modal.Volume.from_name(f"v{version}", create_if_missing=True, version=version, client=sdk)
            put(kept, d__large=LARGE, removed=b"x")
            kept.remove_file("removed")
            volumes.append(kept)
        fresh_local_modal.kill()
        fresh_local_modal.start()
        for kept in volumes:
            assert names(kept) == ["d", "d/large"]
            assert read(kept, "d/large") == LARGE


@pytest.mark.parametrize("version", ["1", "2"])
def test_the_command_line(local_modal: LocalModal, tmp_path: Path, version: str) -> None:
    def volume_command(*arguments: str) -> str:
        return modal_cli(local_modal, "volume", *arguments)

    def listed(path: str) -> list[str]:
        return sorted(
            next(iter(row.values())) for row in json.loads(volume_command("ls", name, path, "--json"))
        )

    name, renamed = unique("cli"), unique("renamed")
    (tmp_path / "up" / "sub").mkdir(parents=True)
    (tmp_path / "up" / "a.txt").write_text("by hand")
    (tmp_path / "up" / "sub" / "b.txt").write_text("deeper")
    volume_command("create", name, "--version", version)
    volume_command("put", name, str(tmp_path / "up"), "dir")
    assert listed("dir") == ["dir/a.txt", "dir/sub"]
    volume_command("cp", name, "dir/a.txt", "copy.txt")
    volume_command("get", name, "copy.txt", str(tmp_path / "down.txt"))
    assert (tmp_path / "down.txt").read_text() == "by hand"
    (tmp_path / "down").mkdir()
    volume_command("get", name, "dir", str(tmp_path / "down"))
    assert (tmp_path / "down" / "dir" / "sub" / "b.txt").read_text() == "deeper"
    (tmp_path / "up" / "a.txt").write_text("again")
    assert modal_command(local_modal, "volume", "put", name, str(tmp_path / "up/a.txt"), "copy.txt")[0] != 0
    volume_command("put", "--force", name, str(tmp_path / "up/a.txt"), "copy.txt")
    volume_command("get", "--force", name, "copy.txt", str(tmp_path / "down.txt"))
    assert (tmp_path / "down.txt").read_text() == "again"
    volume_command("rm", name, "dir", "-r")
    assert listed("/") == ["copy.txt"]
    volume_command("rename", "--yes", name, renamed)
    volumes = json.loads(volume_command("list", "--json"))
    assert renamed in json.dumps(volumes) and name not in json.dumps(volumes)
    volume_command("delete", "--yes", renamed)
    assert renamed not in volume_command("list", "--json")


def test_names_that_no_file_system_has_are_refused(volume: modal.Volume) -> None:
    for path in ("n" * 256, "\u00fc" * 128, "directory/" * 400 + "f"):
        with pytest.raises(InvalidError, match="longer than"):
            with volume.batch_upload() as batch:
                batch.put_file(io.BytesIO(b"x"), path)
    put(volume, **{"n" * 255: b"x"})
    assert names(volume) == ["n" * 255]

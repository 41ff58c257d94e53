from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modal.venvs import archive
from airflow_provider_modal.volume.digests import sha256_of


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = (path.read_bytes(), stat.S_IMODE(path.stat().st_mode) & 0o111)
    return found


def test_a_folder_comes_back_and_equal_ones_are_equal_files(tmp_path: Path) -> None:
    for name in ("one", "other"):
        folder = tmp_path / name
        (folder / "lib" / "p\u00e4ckage").mkdir(parents=True)
        (folder / "lib" / "p\u00e4ckage" / ("long" * 40)).write_bytes(os.urandom(0) + b"x" * 3_000_000)
        (folder / "bin").mkdir()
        (folder / "bin" / "tool").write_text("#!/bin/sh\n")
        (folder / "bin" / "tool").chmod(0o755)
        (folder / "lib64").symlink_to("lib")
        (folder / "bin" / "again").symlink_to("tool")
        (folder / "left-out").write_text("x")
        for path in folder.rglob("*"):
            os.utime(path, (1e9, 1e9), follow_symlinks=False)
        archive.pack(folder, tmp_path / f"{name}.tar.gz", lambda path: path == "left-out")
        (folder / "left-out").unlink()
    back = tmp_path / "back"
    back.mkdir()
    archive.unpack(tmp_path / "one.tar.gz", back)
    assert content(back) == content(tmp_path / "one")
    assert sha256_of(tmp_path / "one.tar.gz") == sha256_of(tmp_path / "other.tar.gz")


def test_what_leads_out_of_a_folder_is_not_packed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out").symlink_to("/etc/passwd")
    with pytest.raises(archive.ArchiveError, match="out is a link to /etc/passwd"):
        archive.pack(folder, tmp_path / "a.tar.gz")


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


def file(name: str, mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = 4, mode
    return info


@pytest.mark.parametrize(
    "members",
    [
        [file("../evil")],
        [file("/evil")],
        [file("a/../../evil")],
        [link("out", "..")],
        [link("out", "/")],
        [link("a/out", "../../evil")],
        [link("in", "a"), file("in/evil")],
        [file("a/x"), link("in", "a"), file("in/evil")],
        [link("evil", "a"), file("evil")],
        [file("a"), file("a")],
        [link("hard", "/etc/passwd", tarfile.LNKTYPE)],
        [special("pipe", tarfile.FIFOTYPE)],
        [special("device", tarfile.CHRTYPE)],
    ],
    ids=lambda members: "+".join(member.name for member in members),
)
def test_a_hostile_archive_is_refused_and_reaches_nothing(
    tmp_path: Path, members: list[tarfile.TarInfo]
) -> None:
    packed = tmp_path / "a.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"evil") if member.isreg() else None)
    folder = tmp_path / "outer" / "folder"
    folder.mkdir(parents=True)
    with pytest.raises(archive.ArchiveError):
        archive.unpack(packed, folder)
    assert [path.name for path in (tmp_path / "outer").iterdir()] == ["folder"]
    assert not (folder / "a" / "evil").exists()


def test_modes_are_ours(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(file("setuid", 0o4777), io.BytesIO(b"evil"))
    folder = tmp_path / "folder"
    folder.mkdir()
    archive.unpack(tmp_path / "a.tar.gz", folder)
    assert stat.S_IMODE((folder / "setuid").stat().st_mode) & 0o7022 == 0


@pytest.mark.parametrize("damage", ["cut", "garbage", "flipped", "no gzip", "empty"])
def test_a_damaged_archive_is_told(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(os.urandom(200_000))
    packed = tmp_path / "a.tar.gz"
    archive.pack(folder, packed)
    whole = packed.read_bytes()
    packed.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "garbage": gzip.compress(b"garbage" * 1000),
            "flipped": whole[:1000] + bytes(b ^ 0xFF for b in whole[1000:1100]) + whole[1100:],
            "no gzip": b"something else",
            "empty": b"",
        }[damage]
    )
    back = tmp_path / "back"
    back.mkdir()
    with pytest.raises(archive.ArchiveError, match=r"a\.tar\.gz can't be unpacked"):
        archive.unpack(packed, back)

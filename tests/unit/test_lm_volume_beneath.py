"""Files below a directory whose owner would like to lead the server out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_modal.volumes.beneath import Beneath


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "x").write_text("the host's")
    root = tmp_path / "root"
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / "f").write_text("inside")
    (root / "link").symlink_to(tmp_path / "host")
    (root / "d" / "link").symlink_to(tmp_path / "host" / "x")
    return root


@pytest.fixture
def tree(inside: Path) -> Iterator[Beneath]:
    with Beneath(str(inside)) as opened:
        yield opened


def test_no_way_leads_through_a_link_or_upwards(tree: Beneath, inside: Path) -> None:
    for forbidden in (
        lambda: tree.status("link/x"),
        lambda: tree.children("link"),
        lambda: tree.open_file("link/x"),
        lambda: tree.remove("link/x"),
        lambda: tree.remove_all("link/x"),
        lambda: tree.make_directory("link/new"),
        lambda: tree.make_link("link/new", "target"),
        lambda: tree.set_mode("link", 0o700),
        lambda: Beneath(str(inside), "/link"),
    ):
        with pytest.raises(NotADirectoryError):
            forbidden()
    for path in ("../host/x", "d/../../host/x", "d/..", "", "d//f"):
        with pytest.raises(ValueError, match="Not a name"):
            tree.open_file(path)
    assert [path.name for path in (inside.parent / "host").iterdir()] == ["x"]
    assert tree.open_file("d/link") is None
    assert tree.link_target("d/link") == str(inside.parent / "host" / "x")
    assert tree.link_target("d/f") is None


def test_what_is_removed_is_only_what_is_inside(tree: Beneath, inside: Path) -> None:
    (inside / "d" / "e" / "g").write_text("x")
    (inside / "d" / "e").chmod(0)
    tree.remove_all("link")
    tree.remove_all("d")
    assert os.listdir(inside) == []
    assert (inside.parent / "host" / "x").read_text() == "the host's"


def test_a_directory_made_again_is_not_mistaken_for_the_one_before(tree: Beneath, inside: Path) -> None:
    assert tree.status("d/f").st_size == len("inside")
    tree.remove_all("d")
    tree.make_directory("d")
    tree.make_directory("d")
    tree.set_mode("d", 0o751)
    tree.make_link("d/new", "target")
    assert os.readlink(inside / "d" / "new") == "target"
    assert (inside / "d").stat().st_mode & 0o7777 == 0o751
    with pytest.raises(FileExistsError):
        tree.make_directory("link")


def test_no_descriptor_is_left_open(inside: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Beneath(str(inside), "d") as tree:
        assert sorted(name for name, _ in tree.children("")) == ["e", "f", "link"]
        tree.children("e")
        for path in ("link/x", "nowhere/x", "e/nowhere/x"):
            with pytest.raises(OSError, match="directory"):
                tree.status(path)
    assert len(os.listdir("/proc/self/fd")) == before

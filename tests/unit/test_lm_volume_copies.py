"""A copy that one container has left and another one gets."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from local_modal.volumes.copies import CopyView
from local_modal.volumes.manifest import Changes
from local_modal.volumes.store import VolumeStore
from local_modal.volumes.views import BoundView
from tests.unit.test_lm_volume_views import VOLUME, committed, root, upload

OpenView = Callable[..., CopyView]


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    volume_store = VolumeStore(tmp_path / "store")
    volume_store.create(VOLUME)
    return volume_store


@pytest.fixture
def open_view(store: VolumeStore, tmp_path: Path) -> OpenView:
    views: list[CopyView] = []

    def opened() -> CopyView:
        bound = BoundView("/mounted-nowhere", tmp_path / "views" / str(len(views)), False, VOLUME)
        views.append(CopyView(store, bound))
        views[-1].open()
        return views[-1]

    return opened


class TestRenewal:
    """The view that one container has left becomes the next one's."""

    def renewed(self, view: CopyView, tmp_path: Path) -> Path:
        view.renew(BoundView("/elsewhere", tmp_path / "views" / "next" / "0", False, VOLUME))
        return view.bound.host_path

    def tree(self, directory: Path) -> dict[str, str | int]:
        return {
            str(path.relative_to(directory)): path.read_text()
            if path.is_file()
            else path.stat().st_mode & 0o7777
            for path in directory.rglob("*")
        }

    def test_it_is_the_current_version_and_nothing_of_what_was_not_committed(
        self, store: VolumeStore, open_view: OpenView, tmp_path: Path
    ) -> None:
        for path in ("same", "changed", "removed", "d/kept", "gone"):
            upload(store, path, path)
        view = open_view()
        (root(view) / "committed").write_text("yes")
        view.commit([])
        (root(view) / "changed").write_text("UNSEEN!")
        os.utime(root(view) / "changed", ns=(1_600_000_000_000_000_000,) * 2)
        (root(view) / "removed").unlink()
        (root(view) / "new").mkdir()
        (root(view) / "new" / "uncommitted").write_text("x")
        (root(view) / "d").chmod(0o700)
        os.mkfifo(root(view) / "pipe")
        (root(view) / "link").symlink_to("same")
        os.link(root(view) / "same", root(view) / "hard-link")
        store.commit(VOLUME, Changes(deletes=["gone"]))
        upload(store, "later", "later")

        after = self.renewed(view, tmp_path)
        fresh = open_view()
        assert self.tree(after) == self.tree(root(fresh))
        assert (after / "changed").read_text() == "changed"
        assert (after / "same").stat().st_nlink == 1

    def test_its_changes_are_found_like_those_of_a_fresh_one(
        self, store: VolumeStore, open_view: OpenView, tmp_path: Path
    ) -> None:
        upload(store, "f", "old")
        upload(store, "g", "same")
        view = open_view()
        after = self.renewed(view, tmp_path)
        version = store.head(VOLUME)
        view.commit([])
        assert store.head(VOLUME) is version
        (after / "f").write_text("new")
        (after / "g").unlink()
        view.commit([])
        assert committed(store) == {"f": "new"}

    def test_what_was_written_through_mapped_memory_after_the_commit_is_thrown_away(
        self, store: VolumeStore, open_view: OpenView, tmp_path: Path
    ) -> None:
        upload(store, "f", "before")
        view = open_view()
        with open(root(view) / "f", "r+b") as stream, mmap.mmap(stream.fileno(), 0) as memory:
            memory[:] = b"commit"
            view.commit([os.getpid()])
            memory[:] = b"secret"
        assert (self.renewed(view, tmp_path) / "f").read_text() == "commit"

"""A container's view of a volume: snapshot, commit, reload, and when a reload is refused."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from local_modal.volumes.beneath import Beneath
from local_modal.volumes.copies import CopyView
from local_modal.volumes.manifest import Changes, Entry, file
from local_modal.volumes.store import Head, VolumeStore
from local_modal.volumes.trees import Trees
from local_modal.volumes.views import OPEN_FILES_MESSAGE, BoundView, NotADirectoryInVolume, OpenFiles, View
from tests.unit.lm_overlay_container import SERVICE_PATH, MountedOverlay, overlay_kind

VOLUME = "vo-1"
LIBC = ctypes.CDLL(None)

OpenView = Callable[..., View]


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    volume_store = VolumeStore(tmp_path / "store")
    volume_store.create(VOLUME)
    return volume_store


@pytest.fixture(params=["copy", "overlay"])
def open_view(request: pytest.FixtureRequest, store: VolumeStore, tmp_path: Path) -> Iterator[OpenView]:
    views: list[View] = []
    trees = Trees(store, tmp_path / "trees")
    kind = overlay_kind() if request.param == "overlay" else None

    def opened(*, read_only: bool = False, sub_path: str = "") -> View:
        directory = tmp_path / "views" / str(len(views))
        bound = BoundView("/mounted-nowhere", directory, read_only, VOLUME)
        view: View
        if kind is None:
            view = CopyView(store, bound, sub_path)
        else:
            bound = replace(bound, service_path=SERVICE_PATH)
            view = MountedOverlay(store, trees, kind, bound, directory, sub_path)
        views.append(view)
        view.open()
        return view

    yield opened
    for view in views:
        view.close()


def upload(store: VolumeStore, path: str, content: str, mode: int = 0o644) -> None:
    data = content.encode()
    entry = file(store.blobs.put_bytes(data), len(data), mode, 1_600_000_000_000_000_000)
    store.commit(VOLUME, Changes({path: entry}))


def committed(store: VolumeStore) -> dict[str, str | None]:
    """Paths and contents of the current version; None for directories."""
    return {
        path: store.blobs.read(entry.sha256, 0, entry.size).decode()
        if entry.kind == "f"
        else entry.target or None
        for path, entry in store.head(VOLUME).manifest.items()
    }


def root(view: View) -> Path:
    return view.inside if isinstance(view, MountedOverlay) else view.bound.host_path


def map_and_close(path: Path) -> int:
    """Map a page of a file and return its address; Python's own mmap keeps the descriptor open."""
    LIBC.mmap.restype = ctypes.c_void_p
    descriptor = os.open(path, os.O_RDONLY)
    address = LIBC.mmap(
        None, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ, mmap.MAP_PRIVATE, descriptor, ctypes.c_long(0)
    )
    os.close(descriptor)
    assert address not in (None, ctypes.c_void_p(-1).value)
    return int(address)


def test_a_view_is_a_snapshot_with_modes_times_and_links(store: VolumeStore, open_view: OpenView) -> None:
    upload(store, "bin/tool", "#!", mode=0o755)
    first = open_view()
    (root(first) / "link").symlink_to("bin/tool")
    (root(first) / "empty").mkdir(mode=0o700)
    first.commit([])
    upload(store, "later", "not seen")

    second = root(open_view())
    assert (second / "bin/tool").read_text() == "#!"
    assert (second / "bin/tool").stat().st_mode & 0o7777 == 0o755
    assert (second / "bin/tool").stat().st_mtime_ns == 1_600_000_000_000_000_000
    assert os.readlink(second / "link") == "bin/tool"
    assert (second / "empty").stat().st_mode & 0o7777 == 0o700
    assert not (root(first) / "later").exists()
    assert (second / "later").exists()


def test_writes_are_seen_by_nobody_until_the_commit(store: VolumeStore, open_view: OpenView) -> None:
    upload(store, "f", "old")
    writer, reader = open_view(), open_view()
    (root(writer) / "f").write_text("new")
    (root(writer) / "g").write_text("added")
    assert committed(store) == {"f": "old"}
    assert (root(reader) / "f").read_text() == "old"

    writer.commit([])
    assert committed(store) == {"f": "new", "g": "added"}
    assert (root(reader) / "f").read_text() == "old"

    reader.reload([])
    assert (root(reader) / "f").read_text() == "new"
    assert (root(reader) / "g").read_text() == "added"


def test_the_last_commit_of_a_file_wins_and_other_files_merge(
    store: VolumeStore, open_view: OpenView
) -> None:
    upload(store, "shared", "0")
    upload(store, "doomed", "x")
    one, two = open_view(), open_view()
    (root(one) / "shared").write_text("one")
    (root(one) / "mine").write_text("1")
    (root(one) / "doomed").unlink()
    (root(two) / "shared").write_text("two")
    (root(two) / "yours").write_text("2")
    two.commit([])
    one.commit([])
    assert committed(store) == {"shared": "one", "mine": "1", "yours": "2"}


def test_a_file_that_was_only_read_is_not_committed_over_a_newer_one(
    store: VolumeStore, open_view: OpenView
) -> None:
    upload(store, "f", "old")
    stale = open_view()
    upload(store, "f", "newer")
    (root(stale) / "other").write_text("x")
    stale.commit([])
    assert committed(store) == {"f": "newer", "other": "x"}


def test_a_rewrite_of_the_same_size_with_the_same_times_is_found(
    store: VolumeStore, open_view: OpenView
) -> None:
    view = open_view()
    path = root(view) / "f"
    for number in range(300):  # far faster than the file system's clock ticks
        path.write_text(f"{number:03d}")
        os.utime(path, ns=(1, 1))
        view.commit([])
        assert committed(store) == {"f": f"{number:03d}"}


def test_a_rewrite_right_after_the_mount_is_found(store: VolumeStore, open_view: OpenView) -> None:
    for number in range(50):
        upload(store, f"f{number}", "before")
    view = open_view()
    for number in range(50):
        descriptor = os.open(root(view) / f"f{number}", os.O_WRONLY)
        os.write(descriptor, b"after!")
        os.utime(descriptor, ns=(1_600_000_000_000_000_000,) * 2)
        os.close(descriptor)
    view.commit([])
    assert set(committed(store).values()) == {"after!"}


def test_a_store_into_mapped_memory_is_found(store: VolumeStore, open_view: OpenView) -> None:
    upload(store, "f", "before")
    view = open_view()
    with open(root(view) / "f", "r+b") as stream, mmap.mmap(stream.fileno(), 0) as memory:
        memory[:] = b"first!"
        view.commit([os.getpid()])
        assert committed(store) == {"f": "first!"}
        memory[:] = b"second"  # the page is dirty already, so the file's times stay
        view.commit([os.getpid()])
        assert committed(store) == {"f": "second"}


def test_modes_directories_and_links_are_committed(store: VolumeStore, open_view: OpenView) -> None:
    upload(store, "d/f", "x")
    upload(store, "becomes-a-directory", "x")
    view = open_view()
    (root(view) / "d/f").chmod(0o700)
    (root(view) / "becomes-a-directory").unlink()
    (root(view) / "becomes-a-directory").mkdir()
    (root(view) / "becomes-a-directory" / "g").write_text("y")
    (root(view) / "e").mkdir()
    (root(view) / "link").symlink_to("../outside")
    os.mkfifo(root(view) / "pipe")
    view.commit([])
    assert committed(store) == {
        "d": None,
        "d/f": "x",
        "becomes-a-directory": None,
        "becomes-a-directory/g": "y",
        "e": None,
        "link": "../outside",
    }
    assert store.head(VOLUME).manifest["d/f"].mode == 0o700


def test_a_reload_follows_every_kind_of_change(store: VolumeStore, open_view: OpenView) -> None:
    for path in ("tree/a", "tree/b/c", "file", "same"):
        upload(store, path, path)
    writer, reader = open_view(), open_view()
    untouched = (root(reader) / "same").stat()
    for path in ("tree/a", "tree/b/c"):
        (root(writer) / path).unlink()
    (root(writer) / "tree/b").rmdir()
    (root(writer) / "tree").rmdir()
    (root(writer) / "tree").write_text("now a file")
    (root(writer) / "file").unlink()
    (root(writer) / "file").mkdir()
    (root(writer) / "file" / "deep").write_text("now in a directory")
    writer.commit([])
    reader.reload([])
    assert (root(reader) / "tree").read_text() == "now a file"
    assert (root(reader) / "file/deep").read_text() == "now in a directory"
    assert (root(reader) / "same").stat() == untouched

    reader.reload([])  # and nothing of it looks like a change of the reader's
    before = store.head(VOLUME)
    reader.commit([])
    assert store.head(VOLUME) is before


def test_a_reload_commits_what_is_pending(store: VolumeStore, open_view: OpenView) -> None:
    view = open_view()
    (root(view) / "pending").write_text("x")
    upload(store, "other", "y")
    view.reload([])
    assert committed(store) == {"pending": "x", "other": "y"}
    assert (root(view) / "other").read_text() == "y"


class TestOpenFiles:
    def test_an_open_file_prevents_the_reload(self, store: VolumeStore, open_view: OpenView) -> None:
        upload(store, "f", "x")
        view = open_view()
        upload(store, "f", "newer")
        with open(root(view) / "f") as stream:
            with pytest.raises(OpenFiles, match=f"{OPEN_FILES_MESSAGE}.*/f is open in process {os.getpid()}"):
                view.reload([os.getpid()])
            assert stream.read() == "x"
        view.reload([os.getpid()])
        assert (root(view) / "f").read_text() == "newer"

    def test_a_removed_file_that_is_still_open_counts(self, open_view: OpenView) -> None:
        view = open_view()
        with open(root(view) / "f", "w"):
            (root(view) / "f").unlink()
            with pytest.raises(OpenFiles):
                view.reload([os.getpid()])

    def test_a_memory_mapping_counts(self, store: VolumeStore, open_view: OpenView) -> None:
        upload(store, "f", "x")
        view = open_view()
        address = map_and_close(root(view) / "f")
        try:
            with pytest.raises(OpenFiles, match="mapped"):
                view.reload([os.getpid()])
        finally:
            LIBC.munmap(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE))
        view.reload([os.getpid()])

    def test_the_working_directory_of_a_child_counts(self, open_view: OpenView) -> None:
        view = open_view()
        child = subprocess.Popen(["cat"], cwd=root(view), stdin=subprocess.PIPE)
        try:
            with pytest.raises(OpenFiles, match=f"working directory of process {child.pid}"):
                view.reload([os.getpid(), child.pid])
        finally:
            child.communicate()
        view.reload([os.getpid(), child.pid])

    def test_a_commit_is_possible_all_the_same(self, store: VolumeStore, open_view: OpenView) -> None:
        view = open_view()
        with open(root(view) / "log", "w") as stream:
            stream.write("half")
            stream.flush()
            view.commit([os.getpid()])
        assert committed(store) == {"log": "half"}

    def test_a_sibling_with_the_same_beginning_does_not_count(
        self, tmp_path: Path, open_view: OpenView
    ) -> None:
        view = open_view()
        with open(f"{root(view)}-sibling", "w"):
            view.reload([os.getpid()])


class TestMountOptions:
    def test_a_read_only_view_publishes_nothing(self, store: VolumeStore, open_view: OpenView) -> None:
        view = open_view(read_only=True)
        (root(view) / "f").write_text("x")
        view.commit([])
        assert committed(store) == {}
        upload(store, "g", "y")
        view.reload([])
        assert (root(view) / "g").read_text() == "y"

    def test_a_sub_path_is_the_root_of_its_view(self, store: VolumeStore, open_view: OpenView) -> None:
        upload(store, "users/me/f", "mine")
        upload(store, "users/you/f", "yours")
        view = open_view(sub_path="users/me")
        assert sorted(os.listdir(root(view))) == ["f"]
        (root(view) / "f").write_text("changed")
        (root(view) / "g").write_text("new")
        view.commit([])
        assert committed(store)["users/me/f"] == "changed"
        assert committed(store)["users/me/g"] == "new"
        assert committed(store)["users/you/f"] == "yours"
        upload(store, "users/me/h", "later")
        view.reload([])
        assert (root(view) / "h").read_text() == "later"

    def test_a_missing_sub_path_is_created(self, store: VolumeStore, open_view: OpenView) -> None:
        open_view(sub_path="a/b")
        assert committed(store) == {"a": None, "a/b": None}

    @pytest.mark.parametrize("sub_path", ["f", "f/below"])
    def test_a_file_is_no_sub_path(self, store: VolumeStore, open_view: OpenView, sub_path: str) -> None:
        upload(store, "f", "x")
        with pytest.raises(NotADirectoryInVolume, match="/f is not a directory"):
            open_view(sub_path=sub_path)


def test_closing_leaves_nothing_behind(store: VolumeStore, open_view: OpenView) -> None:
    upload(store, "d/f", "x")
    view = open_view()
    (root(view) / "uncommitted").write_text("lost")
    view.close()
    assert not view.bound.host_path.exists()
    assert committed(store) == {"d": None, "d/f": "x"}


@pytest.mark.parametrize("deleted", [False, True], ids=["changed", "deleted"])
def test_a_link_that_a_container_plants_during_a_reload_leads_nowhere(
    store: VolumeStore,
    open_view: OpenView,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deleted: bool,
) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "x").write_text("the host's")
    upload(store, "d/x", "old")
    upload(store, "e", "old")
    view = open_view()
    upload(store, "e", "new")
    if deleted:
        store.commit(VOLUME, Changes(deletes=["d/x"]))
    else:
        upload(store, "d/x", "new")
    show = view._show

    def plant_and_show(head: Head, pids: Iterable[int]) -> None:
        (root(view) / "moved").mkdir()
        (root(view) / "d/x").rename(root(view) / "moved/x")
        (root(view) / "d").rmdir()
        (root(view) / "d").symlink_to(host)
        show(head, pids)

    monkeypatch.setattr(view, "_show", plant_and_show)
    if deleted:
        view.reload([])
    else:
        with pytest.raises(NotADirectoryError):
            view.reload([])
    assert [path.name for path in host.iterdir()] == ["x"]
    assert (host / "x").read_text() == "the host's"
    assert (root(view) / "e").read_text() == ("new" if deleted else "old")
    view.commit([])
    assert committed(store) == {"d": str(host), "e": "new", "moved": None, "moved/x": "old"}


def test_what_is_replaced_by_a_link_while_it_is_read_gives_nothing_of_the_host_away(
    store: VolumeStore, open_view: OpenView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "secret").write_text("the host's")
    view = open_view()
    base = root(view)
    for name in ("file", "pipe"):
        (base / name).write_text("x")
    (base / "d").mkdir()
    (base / "d/secret").write_text("mine")
    read = view._read
    swapped: set[str] = set()

    def swap_and_read(tree: Beneath, path: str, status: os.stat_result) -> Entry | None:
        if path in ("file", "pipe") and path not in swapped:
            swapped.add(path)
            (base / path).unlink()
            if path == "file":
                (base / path).symlink_to(host / "secret")
            else:
                os.mkfifo(base / path)
        if path == "file" and (base / "d").is_dir() and not (base / "d").is_symlink():
            (base / "d").rename(base / "moved")
            (base / "d").symlink_to(host)
        return read(tree, path, status)

    monkeypatch.setattr(view, "_read", swap_and_read)
    view.commit([])
    assert swapped == {"file", "pipe"}
    found = committed(store)
    assert found["file"] == str(host / "secret")
    assert "pipe" not in found
    assert "the host's" not in found.values()
    view.commit([])
    assert committed(store) == {
        "file": str(host / "secret"), "d": str(host), "moved": None, "moved/secret": "mine",
    }  # fmt: skip


def test_a_reload_that_fails_makes_nobody_elses_changes_ones_own(
    store: VolumeStore, open_view: OpenView, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("a", "b", "c", "gone"):
        upload(store, path, "old")
    view, other = open_view(), open_view()
    for path in ("a", "b", "c"):
        (root(other) / path).write_text("other's")
    (root(other) / "gone").unlink()
    (root(other) / "new").mkdir(mode=0o750)
    other.commit([])
    (root(view) / "mine").write_text("x")
    clone = store.blobs._clone
    written: list[int] = []

    def full_after_one_file(source: int, target: int) -> bool:
        written.append(target)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return clone(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(store.blobs, "_clone", full_after_one_file)
        with pytest.raises(OSError, match="No space left"):
            view.reload([])
    upload(store, "a", "newest")
    upload(store, "gone", "back")
    before = store.head(VOLUME)
    view.commit([])
    assert store.head(VOLUME) is before
    view.reload([])
    assert {path: (root(view) / path).read_text() for path in ("a", "b", "c", "gone", "mine")} == {
        "a": "newest", "b": "other's", "c": "other's", "gone": "back", "mine": "x",
    }  # fmt: skip
    assert (root(view) / "new").stat().st_mode & 0o7777 == 0o750

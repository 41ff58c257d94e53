"""Contents, manifests and versions of volumes: what is kept, how changes come together, a restart."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from local_modal.volumes import paths
from local_modal.volumes.blobs import BLOCK_SIZE, MissingBlob
from local_modal.volumes.manifest import Changes, Entry, apply, difference, directory, file
from local_modal.volumes.store import FULL_EVERY, UnknownVolume, VolumeStore

VOLUME = "vo-1"


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    volume_store = VolumeStore(tmp_path)
    volume_store.create(VOLUME)
    return volume_store


def a_file(content: str = "x", mtime_ns: int = 1) -> Entry:
    return file(hashlib.sha256(content.encode()).hexdigest(), len(content), 0o644, mtime_ns)


def put(store: VolumeStore, **contents: str) -> None:
    puts = {}
    for name, content in contents.items():
        data = content.encode()
        puts[name.replace("__", "/")] = file(store.blobs.put_bytes(data), len(data), 0o644, 1)
    store.commit(VOLUME, Changes(puts))


def test_a_commit_leaves_earlier_snapshots_alone(store: VolumeStore) -> None:
    put(store, a="1")
    before = store.head(VOLUME)
    put(store, a="2", b="3")
    assert set(before.manifest) == {"a"}
    assert set(store.head(VOLUME).manifest) == {"a", "b"}
    assert store.head(VOLUME).version == before.version + 1


def test_a_commit_that_changes_nothing_makes_no_version(store: VolumeStore) -> None:
    put(store, a="1")
    version = store.head(VOLUME).version
    put(store, a="1")
    assert store.head(VOLUME).version == version


def test_everything_is_there_after_a_restart(store: VolumeStore, tmp_path: Path) -> None:
    for number in range(FULL_EVERY + 3):  # beyond one version that is written in full
        put(store, **{f"d__f{number % 5}": str(number)})
    store.commit(VOLUME, Changes(deletes=["d/f0"]))
    store.commit(VOLUME, Changes({os.fsdecode(b"d/\xff\xfe"): a_file()}))
    assert VolumeStore(tmp_path).head(VOLUME) == store.head(VOLUME)
    assert len(list((tmp_path / "manifests" / VOLUME).iterdir())) < FULL_EVERY


def test_a_crash_before_the_head_moves_leaves_the_version_before(store: VolumeStore, tmp_path: Path) -> None:
    put(store, a="1")
    (tmp_path / "manifests" / VOLUME / "2").write_text('{"puts": {"torn')
    restarted = VolumeStore(tmp_path)
    assert restarted.head(VOLUME) == store.head(VOLUME)
    put(restarted, b="2")
    assert set(VolumeStore(tmp_path).head(VOLUME).manifest) == {"a", "b"}


def test_a_half_created_volume_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "manifests" / "vo-2").mkdir(parents=True)
    assert VolumeStore(tmp_path).volume_ids() == set()


def test_a_deleted_volume_is_gone(store: VolumeStore, tmp_path: Path) -> None:
    store.delete(VOLUME)
    with pytest.raises(UnknownVolume):
        store.head(VOLUME)
    with pytest.raises(UnknownVolume):
        store.commit(VOLUME, Changes({"a": a_file()}))
    assert VolumeStore(tmp_path).volume_ids() == set()


def test_concurrent_commits_all_count(store: VolumeStore) -> None:
    threads = [
        threading.Thread(target=put, args=(store,), kwargs={f"f{number}": "x", "shared": str(number)})
        for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(store.head(VOLUME).manifest) == {f"f{number}" for number in range(16)} | {"shared"}


def test_garbage_collection_keeps_what_a_current_version_has(store: VolumeStore) -> None:
    put(store, a="old")
    old = store.head(VOLUME).manifest["a"].sha256
    put(store, a="new")
    unused = store.blobs.put_bytes(b"uploaded but never used")
    assert store.collect_garbage(grace=3600) == 0
    assert store.collect_garbage(grace=-1) == 2
    assert not store.blobs.has(old)
    assert not store.blobs.has(unused)
    assert store.blobs.has(store.head(VOLUME).manifest["a"].sha256)


def test_blocks_become_a_file_again(store: VolumeStore) -> None:
    content = os.urandom(BLOCK_SIZE - 5) + bytes(10) + bytes(BLOCK_SIZE) + b"end" + bytes(7)
    blocks = [
        store.blobs.put_bytes(content[start : start + BLOCK_SIZE].rstrip(b"\0"))
        for start in range(0, len(content), BLOCK_SIZE)
    ]
    sha256 = store.blobs.assemble(blocks, len(content))
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert store.blobs.read(sha256, BLOCK_SIZE - 10, 20) == content[BLOCK_SIZE - 10 : BLOCK_SIZE + 10]


@pytest.mark.parametrize(("blocks", "size"), [(1, BLOCK_SIZE + 1), (2, 5), (1, 1)])
def test_blocks_that_do_not_fit_the_size_are_refused(store: VolumeStore, blocks: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"[bB]lock"):
        store.blobs.assemble([store.blobs.put_bytes(b"ab")] * blocks, size)


def test_a_missing_content_is_named(store: VolumeStore) -> None:
    with pytest.raises(MissingBlob, match="0" * 64):
        store.blobs.assemble(["0" * 64], 5)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "ab" * 31 + "/.", "A" * 64])
def test_only_a_hash_names_a_content(store: VolumeStore, name: str) -> None:
    with pytest.raises(ValueError, match="Not a sha256"):
        store.blobs.path(name)


class TestApply:
    def test_parents_come_into_being(self) -> None:
        assert set(apply({}, Changes({"a/b/c": a_file()}))) == {"a", "a/b", "a/b/c"}

    def test_what_others_put_into_a_removed_directory_stays(self) -> None:
        base = {"d": directory(1), "d/mine": a_file(), "d/theirs": a_file()}
        assert set(apply(base, Changes(deletes=["d", "d/mine"]))) == {"d", "d/theirs"}

    def test_a_removed_tree_is_gone(self) -> None:
        base = {"d": directory(1), "d/e": directory(1), "d/e/f": a_file(), "g": a_file()}
        assert set(apply(base, Changes(deletes=["d", "d/e", "d/e/f"]))) == {"g"}

    def test_a_file_replaces_a_directory_that_has_appeared(self) -> None:
        base = {"d": directory(1), "d/f": a_file()}
        assert apply(base, Changes({"d": a_file("new")})) == {"d": a_file("new")}

    def test_a_directory_replaces_a_file_that_has_appeared(self) -> None:
        result = apply({"d": a_file()}, Changes({"d/f": a_file()}))
        assert {path: entry.kind for path, entry in result.items()} == {"d": "d", "d/f": "f"}

    def test_the_base_is_left_alone(self) -> None:
        base = {"a": a_file()}
        apply(base, Changes({"b": a_file()}, ["a"]))
        assert base == {"a": a_file()}

    def test_difference_is_its_inverse(self) -> None:
        old = {
            "a": a_file("1"),
            "d": directory(1),
            "d/f": a_file("2"),
            "link": Entry("l", 0o777, 1, target="a"),
        }
        new = {"a": a_file("3"), "d": a_file("now a file"), "e": directory(5, 0o700)}
        assert apply(old, difference(old, new)) == new

    def test_the_time_of_a_directory_is_no_change(self) -> None:
        assert not difference({"d": directory(1)}, {"d": directory(2)})


class TestPaths:
    MANIFEST = {
        "a.txt": a_file("a"),
        "d": directory(1),
        "d/b.txt": a_file("b"),
        "d/e": directory(1),
        "d/e/c.txt": a_file("c"),
        "d2": a_file("not in d"),
    }

    @pytest.mark.parametrize("path", ["", "/", ".", "//"])
    def test_the_root_lists_its_children(self, path: str) -> None:
        listed = paths.list_entries(self.MANIFEST, path, recursive=False)
        assert [name for name, _ in listed] == ["a.txt", "d", "d2"]

    def test_recursive_lists_everything_below(self) -> None:
        listed = paths.list_entries(self.MANIFEST, "/d/", recursive=True)
        assert [name for name, _ in listed] == ["d/b.txt", "d/e", "d/e/c.txt"]

    def test_a_file_lists_itself(self) -> None:
        assert paths.list_entries(self.MANIFEST, "d/b.txt", recursive=True) == [("d/b.txt", a_file("b"))]

    def test_nothing_there(self) -> None:
        with pytest.raises(paths.PathNotFound, match="nope"):
            paths.list_entries(self.MANIFEST, "nope", recursive=False)

    @pytest.mark.parametrize("path", ["../x", "a/../../x", "/..", "a\0b"])
    def test_no_way_out_of_the_volume(self, path: str) -> None:
        with pytest.raises(paths.InvalidPath):
            paths.normalize(path)

    def test_uploads_are_all_or_none(self) -> None:
        with pytest.raises(paths.PathExists, match=r"a\.txt"):
            paths.upload(self.MANIFEST, {"new": a_file(), "/a.txt": a_file()}, overwrite=False)
        changed = paths.upload(self.MANIFEST, {"new": a_file(), "/a.txt": a_file()}, overwrite=True)
        assert set(changed.puts) == {"new", "a.txt"}

    def test_a_directory_is_never_overwritten(self) -> None:
        with pytest.raises(paths.PathExists, match="directory"):
            paths.upload(self.MANIFEST, {"d": a_file()}, overwrite=True)

    def test_a_file_can_not_hold_files(self) -> None:
        with pytest.raises(paths.InvalidPath, match=r"/a\.txt"):
            paths.upload(self.MANIFEST, {"a.txt/x": a_file()}, overwrite=True)

    def test_directories_are_removed_recursively_only(self) -> None:
        with pytest.raises(paths.InvalidPath, match="recursively"):
            paths.remove(self.MANIFEST, "d", recursive=False)
        assert set(apply(self.MANIFEST, paths.remove(self.MANIFEST, "d", recursive=True))) == {"a.txt", "d2"}

    def test_the_root_loses_its_contents(self) -> None:
        assert apply(self.MANIFEST, paths.remove(self.MANIFEST, "/", recursive=True)) == {}

    @pytest.mark.parametrize(
        ("sources", "destination", "recursive", "made"),
        [
            (["a.txt"], "copy.txt", False, {"copy.txt"}),
            (["a.txt"], "d", False, {"d/a.txt"}),
            (["a.txt", "d2"], "d/e/", False, {"d/e/a.txt", "d/e/d2"}),
            (["d"], "new", True, {"new", "new/b.txt", "new/e", "new/e/c.txt"}),
            (["d/e"], "/", True, {"e", "e/c.txt"}),
        ],
    )
    def test_copies_as_cp_does(
        self, sources: list[str], destination: str, recursive: bool, made: set[str]
    ) -> None:
        changes = paths.copy(self.MANIFEST, sources, destination, recursive, now_ns=9)
        assert set(changes.puts) == made
        assert all(entry.mtime_ns == 9 for entry in changes.puts.values())

    @pytest.mark.parametrize(
        ("sources", "destination", "recursive", "error"),
        [
            (["nope"], "x", False, paths.PathNotFound),
            (["a.txt"], "no/such/dir", False, paths.PathNotFound),
            (["d"], "x", False, paths.InvalidPath),
            (["d"], "d/e", True, paths.InvalidPath),
            (["a.txt", "d2"], "x", False, paths.InvalidPath),
            (["a.txt"], "x/", False, paths.InvalidPath),
            (["a.txt"], "a.txt", False, paths.InvalidPath),
            (["d"], "a.txt", True, paths.InvalidPath),
        ],
    )
    def test_copies_that_cp_refuses(
        self, sources: list[str], destination: str, recursive: bool, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            paths.copy(self.MANIFEST, sources, destination, recursive, now_ns=9)


class TestSweep:
    """Contents that have been replaced are removed while the server is at work."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> VolumeStore:
        store = VolumeStore(tmp_path)
        store.create("vo-1")
        return store

    def put(self, store: VolumeStore, path: str, content: bytes) -> str:
        sha256 = store.blobs.put_bytes(content)
        store.commit("vo-1", Changes({path: file(sha256, len(content), 0o644, 1)}))
        return sha256

    def test_what_is_replaced_removed_or_of_a_deleted_volume_goes(self, store: VolumeStore) -> None:
        old, kept = self.put(store, "f", b"old"), self.put(store, "g", b"kept")
        self.put(store, "h", b"kept")
        self.put(store, "f", b"new")
        store.commit("vo-1", Changes(deletes=["h"]))
        assert store.sweep(used=(), after=0) == 1
        assert not store.blobs.has(old) and store.blobs.has(kept)
        store.delete("vo-1")
        assert store.sweep(used=(), after=0) == 2

    def test_what_may_be_in_use_stays_until_it_is_not(self, store: VolumeStore) -> None:
        old = self.put(store, "f", b"old")
        self.put(store, "f", b"new")
        assert store.sweep(used=()) == 0  # replaced a moment ago
        assert store.sweep(used={old}, after=0) == 0
        assert store.sweep(used=(), after=0) == 1

    def test_what_is_about_to_be_used_again_stays(self, store: VolumeStore) -> None:
        old = self.put(store, "f", b"old")
        self.put(store, "f", b"new")
        assert store.blobs.put_bytes(b"old") == old  # of a commit that isn't through
        assert store.sweep(used=(), after=0) == 0
        assert store.blobs.read(old, 0, 3) == b"old"

"""How big volumes may become."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_modal.volumes.limits import VERSION_1, VERSION_2, LimitExceeded, Limits
from local_modal.volumes.manifest import Changes, file
from local_modal.volumes.store import VolumeStore

VOLUME = "vo-1"


def some(*paths: str, size: int = 1) -> Changes:
    return Changes(dict.fromkeys(paths, file("a" * 64, size, 0o644, 1)))


def volume(tmp_path: Path, limits: Limits) -> VolumeStore:
    store = VolumeStore(tmp_path)
    store.create(VOLUME, limits)
    return store


def test_files_directories_and_links_count_together(tmp_path: Path) -> None:
    store = volume(tmp_path, Limits(inodes=3))
    store.commit(VOLUME, some("a", "d/b"))
    with pytest.raises(LimitExceeded, match="No space left on device: 4 files"):
        store.commit(VOLUME, some("c"))
    assert set(store.head(VOLUME).manifest) == {"a", "d", "d/b"}
    store.commit(VOLUME, some("a", size=2))  # nothing new


def test_files_of_one_directory_are_counted(tmp_path: Path) -> None:
    store = volume(tmp_path, Limits(files_per_directory=2))
    store.commit(VOLUME, some("a", "b", "d/a", "d/b", "d/e/a", "f/a"))
    with pytest.raises(LimitExceeded, match="'/d' would have 3 files"):
        store.commit(VOLUME, some("d/c"))


def test_a_volume_that_is_too_big_can_become_smaller(tmp_path: Path) -> None:
    volume(tmp_path, Limits()).commit(VOLUME, some("a", "b", "c"))
    store = volume(tmp_path, Limits(inodes=1, files_per_directory=1))
    store.commit(VOLUME, Changes(deletes=["a"]))
    assert set(store.head(VOLUME).manifest) == {"b", "c"}


def test_a_file_must_be_smaller_than_a_tebibyte(tmp_path: Path) -> None:
    store = volume(tmp_path, VERSION_2)
    store.commit(VOLUME, some("f", size=2**40 - 1))
    with pytest.raises(LimitExceeded, match="'f' has 1099511627776 bytes"):
        store.commit(VOLUME, some("f", size=2**40))


def test_the_documented_figures() -> None:
    assert Limits(inodes=500_000) == VERSION_1
    assert Limits(files_per_directory=262_144, file_bytes=2**40) == VERSION_2

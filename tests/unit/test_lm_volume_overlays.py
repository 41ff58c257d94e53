"""What is particular to views that are overlays: how the kernel's marks are read, and the shared trees below
them."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local_modal.volumes.manifest import Changes, file
from local_modal.volumes.overlays import TRUSTED, USER, Kind
from local_modal.volumes.store import VolumeStore
from local_modal.volumes.trees import Trees
from local_modal.volumes.views import BoundView
from tests.unit.lm_overlay_container import SERVICE_PATH, MountedOverlay, overlay_kind
from tests.unit.test_lm_volume_views import VOLUME, committed, upload

OpenView = Callable[..., MountedOverlay]


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    volume_store = VolumeStore(tmp_path / "store")
    volume_store.create(VOLUME)
    return volume_store


@pytest.fixture
def trees(store: VolumeStore, tmp_path: Path) -> Trees:
    return Trees(store, tmp_path / "trees")


@pytest.fixture(params=[TRUSTED, USER], ids=["trusted", "user"])
def kind(request: pytest.FixtureRequest) -> Kind:
    best = overlay_kind()
    kind: Kind = request.param
    if kind is TRUSTED and best is not TRUSTED:
        pytest.skip("only for root")
    return kind


@pytest.fixture
def open_view(store: VolumeStore, trees: Trees, kind: Kind, tmp_path: Path) -> Iterator[OpenView]:
    views: list[MountedOverlay] = []

    def opened(sub_path: str = "", read_only: bool = False) -> MountedOverlay:
        directory = tmp_path / "views" / str(len(views))
        bound = BoundView("/mounted-nowhere", directory, read_only, VOLUME, service_path=SERVICE_PATH)
        views.append(MountedOverlay(store, trees, kind, bound, directory, sub_path))
        views[-1].open()
        return views[-1]

    yield opened
    for view in views:
        view.close()


def content(directory: Path) -> dict[str, str | None]:
    """As `committed`, of a directory."""
    found: dict[str, str | None] = {}
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_text() if path.is_file() else None
    return found


def rename(source: Path, target: Path) -> None:
    """As `mv`: what the kernel can't rename is copied."""
    try:
        source.rename(target)
    except OSError:
        shutil.copytree(source, target, symlinks=True)
        shutil.rmtree(source)


def test_whatever_a_container_does_is_what_is_committed(store: VolumeStore, open_view: OpenView) -> None:
    chance = random.Random(20261123)
    for number in range(40):
        upload(store, f"{number % 3}/{number % 5}/{number}", str(number))
    views = [open_view(), open_view()]

    def some(root: Path, directories: bool) -> Path | None:
        found = sorted(p for p in root.rglob("*") if p.is_dir() == directories and not p.is_symlink())
        return chance.choice(found) if found else None

    for step in range(100):
        view = chance.choice(views)
        root = view.inside
        directory = some(root, directories=True) or root
        path = some(root, directories=False)
        new = chance.choice([root, directory]) / f"n{step}"
        match chance.randrange(12):
            case 0 | 1:
                new.write_text(str(step))
            case 2:
                new.mkdir()
            case 3 if path:
                path.unlink()
            case 4 if path:
                path.write_text(f"changed in {step}")
            case 5 if path:
                path.unlink()
                path.mkdir()
                (path / "inside").write_text(str(step))
            case 6 if directory != root:
                shutil.rmtree(directory)
            case 7 if directory != root:
                shutil.rmtree(directory)
                directory.mkdir()
                (directory / "again").write_text(str(step))
            case 8 if directory != root and directory not in new.parents:
                rename(directory, new)
            case 9 if directory != root:
                shutil.rmtree(directory)
                directory.write_text("a file now")
            case 10 if path:
                path.rename(new)
            case 11:
                new.symlink_to("nowhere")
        if step % 5 == 0:
            view.reload([])
            assert content(root) == committed(store)
            upload(store, f"{step % 3}/uploaded/{step}", str(step))
    for view in views * 2:
        view.reload([])
    for view in views:
        assert content(view.inside) == committed(store)
    before = store.head(VOLUME)
    for view in views:
        view.commit([])
    assert store.head(VOLUME) is before
    assert content(open_view().inside) == committed(store)


def test_directories_are_renamed_where_the_kernel_can_and_refused_elsewhere(
    store: VolumeStore, open_view: OpenView, kind: Kind
) -> None:
    for path in ("a/b/c", "a/d", "z/e"):
        upload(store, path, path)
    view = open_view()
    if kind is USER:
        with pytest.raises(OSError, match="Invalid cross-device link"):
            (view.inside / "a").rename(view.inside / "new")
        return
    (view.inside / "a").rename(view.inside / "z/moved")
    view.commit([])
    assert committed(store) == {
        "z": None, "z/e": "z/e",
        "z/moved": None, "z/moved/b": None, "z/moved/b/c": "a/b/c", "z/moved/d": "a/d",
    }  # fmt: skip
    (view.inside / "z/moved/b").rename(view.inside / "z/moved/x")
    (view.inside / "z/moved/d").unlink()
    (view.inside / "a").write_text("a file now")
    view.commit([])
    assert committed(store) == {
        "a": "a file now", "z": None, "z/e": "z/e",
        "z/moved": None, "z/moved/x": None, "z/moved/x/c": "a/b/c",
    }  # fmt: skip
    (view.inside / "z").rename(view.inside / "last")
    view.reload([])
    assert content(view.inside) == committed(store)
    assert committed(store)["last/moved/x/c"] == "a/b/c"


def test_what_is_only_touched_is_no_change(store: VolumeStore, open_view: OpenView) -> None:
    upload(store, "d/f", "x")
    view = open_view()
    before = store.head(VOLUME)
    with open(view.inside / "d/f", "r+"):
        pass  # the kernel has copied it into the upper directory
    assert (view.upper / "d/f").exists()
    view.commit([])
    assert store.head(VOLUME) is before


def test_files_with_equal_contents_are_different_files(store: VolumeStore, open_view: OpenView) -> None:
    names = [f"d{number}/__init__.py" for number in range(5)]
    entry = file(store.blobs.put_bytes(b""), 0, 0o644, 7)
    store.commit(VOLUME, Changes(dict.fromkeys(names, entry)))
    for _ in range(2):
        root = open_view().inside
        assert len({(root / name).stat().st_ino for name in names}) == len(names)
        assert {(root / name).stat().st_mtime_ns for name in names} == {7}
    store.commit(VOLUME, Changes({"later": entry, "mode": entry._replace(mode=0o600)}))
    root = open_view().inside
    assert len({(root / name).stat().st_ino for name in [*names, "later", "mode"]}) == len(names) + 2
    assert (root / "mode").stat().st_mode & 0o7777 == 0o600
    assert (root / "later").stat().st_mode & 0o7777 == 0o644


def test_no_write_reaches_what_is_shared(store: VolumeStore, open_view: OpenView) -> None:
    upload(store, "f", "shared")
    one, two = open_view(), open_view()
    assert one.bound.layers is not None and two.bound.layers is not None
    assert one.bound.layers.lower == two.bound.layers.lower
    (one.inside / "f").write_text("mine")
    (one.inside / "f").chmod(0o600)
    os.utime(one.inside / "f", (1, 1))
    assert (two.inside / "f").read_text() == "shared"
    assert (two.inside / "f").stat().st_mode & 0o7777 == 0o644
    assert committed(store) == {"f": "shared"}


def test_a_tree_is_shared_made_from_the_last_one_and_removed(
    store: VolumeStore, trees: Trees, tmp_path: Path
) -> None:
    for number in range(5):
        upload(store, f"d/{number}", str(number))
    one = trees.acquire(VOLUME)
    assert trees.acquire(VOLUME) is one
    inode = os.stat(f"{one.path}/d/1").st_ino
    store.commit(VOLUME, Changes(deletes=["d/0"]))
    upload(store, "d/1", "changed")
    upload(store, "d/2/now-a-directory", "x")
    two = trees.acquire(VOLUME)
    assert two is not one  # which is still in use
    assert content(Path(two.path)) == committed(store)
    assert os.stat(f"{two.path}/d/3").st_ino == os.stat(f"{one.path}/d/3").st_ino
    assert os.stat(f"{one.path}/d/1").st_ino == inode

    trees.release(one)
    trees.release(one)
    assert not os.path.exists(one.path)
    trees.release(two)
    upload(store, "d/2", "a file again")
    upload(store, "e/new", "new")
    three = trees.acquire(VOLUME)
    assert three is two  # in place: nobody uses it
    assert content(Path(three.path)) == committed(store)
    trees.forget(VOLUME)
    trees.release(three)
    assert list((tmp_path / "trees").iterdir()) == []


def test_few_idle_trees_are_kept(store: VolumeStore, trees: Trees, tmp_path: Path) -> None:
    for number in range(20):
        store.create(f"vo-{number}")
        trees.release(trees.acquire(f"vo-{number}"))
    assert len(list((tmp_path / "trees").iterdir())) == 16


def test_a_tree_that_somebody_has_tampered_with_is_made_anew(store: VolumeStore, trees: Trees) -> None:
    upload(store, "d/f", "x")
    tree = trees.acquire(VOLUME)
    os.unlink(f"{tree.path}/d/f")
    trees.release(tree)
    store.commit(VOLUME, Changes(deletes=["d/f"]))
    assert content(Path(trees.acquire(VOLUME).path)) == committed(store)


def test_directories_that_nobody_may_write_to_are_mounted_and_removed(
    store: VolumeStore, trees: Trees, open_view: OpenView
) -> None:
    upload(store, "d/f", "x")
    view = open_view()
    (view.inside / "d").chmod(0o555)
    view.commit([])
    view.close()
    again = open_view()
    assert (again.inside / "d").stat().st_mode & 0o7777 == 0o555
    upload(store, "e", "y")
    again.reload([])
    assert content(again.inside) == committed(store)
    again.close()
    trees.forget(VOLUME)
    assert not list(again.upper.parent.parent.glob("[0-9]"))

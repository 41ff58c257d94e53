"""The views of running containers together: which container gets which, and what is kept when one ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from modal_proto import api_pb2

from local_modal.volumes.manifest import Changes, file
from local_modal.volumes.mounted import SPARES_PER_MOUNT, MountedViews, NotMounted, empty
from local_modal.volumes.overlays import USER
from local_modal.volumes.store import UnknownVolume, VolumeStore
from local_modal.volumes.views import NotADirectoryInVolume

VOLUME = "vo-1"


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    volume_store = VolumeStore(tmp_path / "store")
    volume_store.create(VOLUME)
    data = b"content"
    entry = file(volume_store.blobs.put_bytes(data), len(data), 0o644, 1)
    volume_store.commit(VOLUME, Changes({"f": entry, "d/g": entry}))
    return volume_store


@pytest.fixture
def views(store: VolumeStore, tmp_path: Path) -> MountedViews:
    return MountedViews(store, tmp_path / "views", pids=lambda task_id: [])


def mount(sub_path: str = "", volume_id: str = VOLUME) -> api_pb2.VolumeMount:
    return api_pb2.VolumeMount(volume_id=volume_id, mount_path="/vol", sub_path=sub_path)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), timeout=30)

    asyncio.run(bounded())


def test_containers_do_not_share_a_view(views: MountedViews, store: VolumeStore) -> None:
    async def scenario() -> None:
        (one,) = await views.open("ta-1", [mount()])
        (two,) = await views.open("ta-2", [mount()])
        (one.host_path / "f").write_text("mine")
        assert (two.host_path / "f").read_text() == "content"
        await views.commit("ta-2", VOLUME)
        assert store.head(VOLUME).manifest["f"].size == len("content")
        await views.commit("ta-1", VOLUME)
        assert store.head(VOLUME).manifest["f"].size == len("mine")

    run(scenario)


def test_the_next_container_gets_the_inodes_but_not_the_changes(views: MountedViews) -> None:
    async def scenario() -> None:
        (one,) = await views.open("ta-1", [mount()])
        inode = (one.host_path / "d/g").stat().st_ino
        (one.host_path / "f").write_text("uncommitted")
        await views.close("ta-1")
        assert not one.host_path.exists()
        (two,) = await views.open("ta-2", [mount()])
        assert (two.host_path / "f").read_text() == "content"
        assert (two.host_path / "d/g").stat().st_ino == inode

    run(scenario)


def test_a_view_that_a_process_still_uses_is_not_passed_on(views: MountedViews) -> None:
    async def scenario() -> None:
        (one,) = await views.open("ta-1", [mount()])
        inode = (one.host_path / "f").stat().st_ino
        stray = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()"],
            cwd=one.host_path / "d",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert stray.stdout is not None
            stray.stdout.readline()
            with open(one.host_path / "f"):  # keeps the inode from being used again
                await views.close("ta-1")
                (two,) = await views.open("ta-2", [mount()])
                assert (two.host_path / "f").stat().st_ino != inode
        finally:
            stray.communicate(b"\n")

    run(scenario)


def test_only_the_same_part_of_the_volume_is_passed_on(views: MountedViews) -> None:
    async def scenario() -> None:
        await views.open("ta-1", [mount()])
        await views.close("ta-1")
        (part,) = await views.open("ta-2", [mount("d")])
        assert [path.name for path in part.host_path.iterdir()] == ["g"]

    run(scenario)


def test_few_views_are_kept(views: MountedViews, tmp_path: Path) -> None:
    async def scenario() -> None:
        tasks = [f"ta-{number}" for number in range(SPARES_PER_MOUNT + 3)]
        for task_id in tasks:
            await views.open(task_id, [mount()])
        for task_id in tasks:
            await views.close(task_id)
        kept = [path for path in (tmp_path / "views" / "spare").iterdir() if path.is_dir()]
        assert len(kept) == SPARES_PER_MOUNT
        await views.forget(VOLUME)
        assert not [path for path in (tmp_path / "views" / "spare").iterdir() if path.is_dir()]

    run(scenario)


def test_a_container_that_does_not_mount_the_volume_can_do_nothing_with_it(views: MountedViews) -> None:
    async def scenario() -> None:
        await views.open("ta-1", [mount()])
        with pytest.raises(NotMounted, match="vo-2"):
            await views.commit("ta-1", "vo-2")
        with pytest.raises(NotMounted, match="ta-2"):
            await views.reload("ta-2", VOLUME)
        await views.close("ta-1")
        with pytest.raises(NotMounted):
            await views.commit("ta-1", VOLUME)

    run(scenario)


def test_a_mount_that_fails_leaves_nothing(views: MountedViews, tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(UnknownVolume):
            await views.open("ta-1", [mount(), mount(volume_id="vo-gone")])
        with pytest.raises(NotADirectoryInVolume):
            await views.open("ta-2", [mount("f")])
        assert not list((tmp_path / "views").glob("ta-*"))

    run(scenario)


def test_concurrent_commits_of_one_container_do_not_disturb_each_other(
    views: MountedViews, store: VolumeStore
) -> None:
    async def scenario() -> None:
        (one,) = await views.open("ta-1", [mount()])
        for number in range(20):
            (one.host_path / f"n{number}").write_text(str(number))
        await asyncio.gather(*(views.commit("ta-1", VOLUME) for _ in range(5)))
        await asyncio.gather(views.commit("ta-1", VOLUME), views.reload("ta-1", VOLUME))
        assert {f"n{number}" for number in range(20)} <= set(store.head(VOLUME).manifest)

    run(scenario)


@pytest.mark.parametrize("operation", ["commit", "reload"])
def test_a_request_that_is_lost_while_it_is_carried_out_deletes_nothing(
    store: VolumeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    reading, go_on = threading.Event(), threading.Event()
    put_file = store.blobs.put_file

    def put_file_slowly(source: str | Path | int) -> tuple[str, int]:
        reading.set()
        assert go_on.wait(30)
        return put_file(source)

    async def scenario() -> None:
        views = MountedViews(store, tmp_path / "views", lambda task_id: [])
        (one,) = await views.open("ta-1", [mount()])
        (one.host_path / "committed").write_text("x")
        await views.commit("ta-1", VOLUME)
        (one.host_path / "later").write_text("x")
        monkeypatch.setattr(store.blobs, "put_file", put_file_slowly)
        lost = asyncio.create_task(getattr(views, operation)("ta-1", VOLUME))
        await asyncio.to_thread(reading.wait, 30)
        lost.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lost
        repeated = asyncio.create_task(views.commit("ta-1", VOLUME))
        await asyncio.sleep(0)
        closing = asyncio.create_task(views.close("ta-1"))
        await asyncio.sleep(0.05)  # time for what must not happen
        assert not closing.done()
        assert (one.host_path / "committed").exists()
        go_on.set()
        await closing
        with pytest.raises(NotMounted, match="has ended"):
            await repeated
        assert store.head(VOLUME).manifest.keys() == {"f", "d", "d/g", "committed", "later"}

    run(scenario)


def test_views_whose_opener_has_gone_are_closed(views: MountedViews, tmp_path: Path) -> None:
    async def scenario() -> None:
        opening = asyncio.create_task(views.open("ta-1", [mount()]))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await views.close("ta-1")
        assert not (tmp_path / "views" / "ta-1").exists()
        with pytest.raises(NotMounted):
            await views.commit("ta-1", VOLUME)

    run(scenario)


def test_background_commits_are_made_where_the_mount_allows_them(
    views: MountedViews, store: VolumeStore
) -> None:
    def mounted(name: str, **options: bool) -> api_pb2.VolumeMount:
        return api_pb2.VolumeMount(volume_id=VOLUME, mount_path=f"/{name}", **options)

    async def scenario() -> None:
        allowed, forbidden, read_only = await views.open(
            "ta-1",
            [
                mounted("allowed", allow_background_commits=True),
                mounted("forbidden"),
                mounted("read-only", allow_background_commits=True, read_only=True),
            ],
        )
        (ended,) = await views.open("ta-2", [mounted("ended", allow_background_commits=True)])
        for bound in (allowed, forbidden, read_only, ended):
            (bound.host_path / bound.mount_path.strip("/")).write_text("x")
        await views.close("ta-2")
        await views.commit_in_background()
        assert set(store.head(VOLUME).manifest) == {"f", "d", "d/g", "allowed"}
        store.delete(VOLUME)
        (allowed.host_path / "another").write_text("x")
        await views.commit_in_background()  # has nowhere to go

    run(scenario)


def test_what_a_former_server_left_is_removed(tmp_path: Path) -> None:
    directory = tmp_path / "views"
    locked = directory / "ta-1" / "0" / "work" / "work"
    locked.mkdir(parents=True)
    (locked / "index").mkdir()
    locked.chmod(0)
    empty(directory)
    assert list(directory.iterdir()) == []


def test_overlays_are_mounted_unless_the_sub_path_has_characters_of_mount_options(
    store: VolumeStore, tmp_path: Path
) -> None:
    async def scenario() -> None:
        views = MountedViews(store, tmp_path / "views", lambda task_id: [], overlays=USER)
        whole, part, odd = await views.open("ta-1", [mount(), mount("d"), mount("at=12:00")])
        assert whole.layers is not None and part.layers is not None and odd.layers is None
        assert part.layers.lower == f"{whole.layers.lower}/d"
        assert whole.service_path != part.service_path
        read_only = mount()
        read_only.read_only = True
        (only_read,) = await views.open("ta-2", [read_only])
        assert [bind["read_only"] for bind in only_read.binds()] == [True]  # writable nowhere
        await views.close("ta-2")
        await views.close("ta-1")
        assert not (tmp_path / "views" / "ta-1").exists()

    run(scenario)

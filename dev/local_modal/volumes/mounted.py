"""The views of all running containers: opened before a container starts, committed and reloaded at its
request, closed at its end.

Where the kernel has overlays they are used, else copies. The copy that a container leaves is kept as a spare
for the next container with the same mount. It only has to be compared with the current version then, which is
several times faster than copying; and ext4 makes new files slowly for a minute after it has removed many (it
passes over recently freed inodes one by one).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from modal_proto import api_pb2

from local_modal.volumes.copies import CopyView
from local_modal.volumes.limits import LimitExceeded
from local_modal.volumes.overlays import UNMOUNTABLE, Kind, OverlayView
from local_modal.volumes.paths import normalize
from local_modal.volumes.store import UnknownVolume, VolumeStore
from local_modal.volumes.trees import Trees
from local_modal.volumes.views import SERVICE_MOUNTS, BoundView, View, remove_tree

log = logging.getLogger(__name__)

SPARES_PER_MOUNT = 4
SPARES = 16
"""Views kept after their container has ended, per volume and sub path, and altogether; each is a full
copy."""


class NotMounted(Exception):
    """The container doesn't mount the volume."""


@dataclass(eq=False)
class _Mounted:
    view: View
    background: bool
    """Whether it is committed in the background."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class MountedViews:
    """All views below one directory. File work happens in threads; one view does one thing at a time.

    What has been begun is done to the end when its caller is cancelled, as a container's request is when its
    connection is lost: a thread can't be interrupted, and a view must not be closed or used by somebody else
    under it.

    Args:
        store: the volumes.
        directory: empty; no container survives the server, see `empty`.
        pids: the live processes of a container.
        overlays: the kind of overlay that works here, or None to copy.
    """

    def __init__(
        self,
        store: VolumeStore,
        directory: Path,
        pids: Callable[[str], Iterable[int]],
        overlays: Kind | None = None,
    ) -> None:
        self._store = store
        self._directory = directory
        self._pids = pids
        self._overlays = overlays
        self._views: dict[str, list[_Mounted]] = {}
        self._spares: list[CopyView] = []
        """The one left last at the end."""
        self._spare_names = itertools.count()
        self._opening: dict[str, asyncio.Task[list[BoundView]]] = {}
        self._running: set[asyncio.Task[None]] = set()
        """Keeps them from being garbage collected."""
        self._trees = Trees(store, directory / "trees")

    async def open(self, task_id: str, mounts: Iterable[api_pb2.VolumeMount]) -> list[BoundView]:
        """A view of every mounted volume as it is now, in the order of `mounts`; a caller that is cancelled
        calls `close`.

        Raises:
            UnknownVolume: a volume has been deleted.
            NotADirectoryInVolume, InvalidPath: a mount's sub path can't be mounted.
        """
        opening = self._opening[task_id] = asyncio.create_task(self._open_all(task_id, list(mounts)))
        opening.add_done_callback(lambda _: self._opening.pop(task_id))
        return await asyncio.shield(opening)

    async def _open_all(self, task_id: str, mounts: list[api_pb2.VolumeMount]) -> list[BoundView]:
        mounted: list[_Mounted] = []
        try:
            for index, mount in enumerate(mounts):
                view = await self._open(self._directory / task_id / str(index), mount)
                mounted.append(_Mounted(view, mount.allow_background_commits))
        except BaseException:
            for entry in mounted:
                await asyncio.to_thread(entry.view.close)
            await asyncio.to_thread(remove_tree, self._directory / task_id)
            raise
        self._views[task_id] = mounted
        return [entry.view.bound for entry in mounted]

    async def prepare(self, volume_ids: Iterable[str]) -> None:
        """Make what all views of these volumes share, so that the first is ready as fast as the others.

        Raises:
            UnknownVolume: a volume has been deleted.
        """
        if self._overlays is not None:
            for volume_id in volume_ids:
                await asyncio.to_thread(self._make_tree, volume_id)

    async def close(self, task_id: str) -> None:
        """Take the views from a container that has ended; what it hasn't committed is lost."""
        await self._to_the_end(self._close_all(task_id))

    async def _close_all(self, task_id: str) -> None:
        if task_id in self._opening:
            await asyncio.wait([self._opening[task_id]])
        for entry in self._views.pop(task_id, []):
            async with entry.lock:
                view = entry.view
                if not isinstance(view, CopyView):
                    await asyncio.to_thread(view.close)
                elif await asyncio.to_thread(self._retire, view):
                    self._spares.append(view)
        await asyncio.to_thread(remove_tree, self._directory / task_id)
        for spare in self._surplus():
            await asyncio.to_thread(spare.close)

    async def forget(self, volume_id: str) -> None:
        """Remove what is kept of a volume that has been deleted."""
        spares = [view for view in self._spares if view.bound.volume_id == volume_id]
        self._spares = [view for view in self._spares if view not in spares]
        for view in spares:
            await asyncio.to_thread(view.close)
        await asyncio.to_thread(self._trees.forget, volume_id)

    async def commit(self, task_id: str, volume_id: str) -> None:
        """Publish what the container has changed.

        Raises:
            NotMounted: it doesn't mount the volume.
            UnknownVolume: the volume has been deleted.
            LimitExceeded: the volume would become too big; nothing has been published.
        """
        await self._to_the_end(self._commit_all(task_id, volume_id))

    async def _commit_all(self, task_id: str, volume_id: str) -> None:
        for entry in self._of(task_id, volume_id):
            async with entry.lock:
                self._check_mounted(task_id, entry)
                await asyncio.to_thread(entry.view.commit, self._pids(task_id))

    async def commit_in_background(self) -> None:
        """Publish what every container has changed, finished or not, in the mounts that allow it."""
        await self._to_the_end(self._commit_all_in_background())

    async def _commit_all_in_background(self) -> None:
        for task_id, mounted in list(self._views.items()):
            for entry in mounted:
                async with entry.lock:
                    if not entry.background or self._views.get(task_id) is not mounted:
                        continue  # it has ended meanwhile: its view is somebody else's or gone
                    try:
                        await asyncio.to_thread(entry.view.commit, self._pids(task_id))
                    except UnknownVolume:
                        log.debug("No background commit of %s: it is deleted", entry.view.bound.volume_id)
                    except (LimitExceeded, OSError) as error:
                        log.warning(
                            "Background commit of %s in %s: %s", entry.view.bound.volume_id, task_id, error
                        )

    async def reload(self, task_id: str, volume_id: str) -> None:
        """Publish what the container has changed, then show it the current version.

        Raises:
            NotMounted: it doesn't mount the volume.
            OpenFiles: it uses a file of it; nothing has been done.
            UnknownVolume: the volume has been deleted.
        """
        await self._to_the_end(self._reload_all(task_id, volume_id))

    async def _reload_all(self, task_id: str, volume_id: str) -> None:
        mounted = self._of(task_id, volume_id)
        async with AsyncExitStack() as locks:
            for entry in mounted:
                await locks.enter_async_context(entry.lock)
            for entry in mounted:
                self._check_mounted(task_id, entry)
                await asyncio.to_thread(entry.view.reload, self._pids(task_id))

    def contents(self) -> set[str]:
        """The contents that views may yet need though no current version has them."""
        return self._trees.contents()

    def _of(self, task_id: str, volume_id: str) -> list[_Mounted]:
        mounted = [entry for entry in self._views.get(task_id, ()) if entry.view.bound.volume_id == volume_id]
        if not mounted:
            raise NotMounted(f"Volume {volume_id} is not mounted in the container {task_id}.")
        return mounted

    def _check_mounted(self, task_id: str, entry: _Mounted) -> None:
        """Raise `NotMounted` if the container has ended while the lock was awaited: its files are gone, which
        must not be taken for deletions."""
        if entry not in self._views.get(task_id, ()):
            raise NotMounted(f"The container {task_id} has ended.")

    async def _to_the_end(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)
            raise

    async def _open(self, directory: Path, mount: api_pb2.VolumeMount) -> View:
        sub_path = normalize(mount.sub_path)
        bound = BoundView(mount.mount_path, directory, mount.read_only, mount.volume_id)
        # The server would have to write to an overlay through a mount in the container that is writable.
        if self._overlays is not None and not mount.read_only and UNMOUNTABLE.isdisjoint(sub_path):
            # Two mounts of one volume must not meet there.
            service_path = f"{SERVICE_MOUNTS}/{mount.volume_id}/{directory.name}"
            bound = replace(bound, service_path=service_path)
            view = OverlayView(self._store, self._trees, self._overlays, bound, directory, sub_path)
            try:
                await asyncio.to_thread(view.open)
            except BaseException:
                await asyncio.to_thread(view.close)
                raise
            return view
        spare = self._take_spare(mount.volume_id, sub_path)
        return await asyncio.to_thread(self._copy, bound, sub_path, spare)

    def _make_tree(self, volume_id: str) -> None:
        self._trees.release(self._trees.acquire(volume_id))

    def _copy(self, bound: BoundView, sub_path: str, spare: CopyView | None) -> CopyView:
        if spare is not None:
            try:
                spare.renew(bound)
            except OSError as error:
                log.info("Copying %s anew: the view left by the last container: %s", bound.volume_id, error)
                spare.close()
            else:
                return spare
        view = CopyView(self._store, bound, sub_path)
        view.open()
        return view

    def _retire(self, view: CopyView) -> bool:
        # A process that got away from its container must not write into somebody else's view.
        if view.is_in_use():
            view.close()
            return False
        view.move(self._directory / "spare" / str(next(self._spare_names)))
        return True

    def _take_spare(self, volume_id: str, sub_path: str) -> CopyView | None:
        for view in reversed(self._spares):
            if view.bound.volume_id == volume_id and view.sub_path == sub_path:
                self._spares.remove(view)
                return view
        return None

    def _surplus(self) -> list[CopyView]:
        kept: list[CopyView] = []
        for view in reversed(self._spares):
            same = [other for other in kept if _mount(other) == _mount(view)]
            if len(kept) < SPARES and len(same) < SPARES_PER_MOUNT:
                kept.append(view)
        surplus = [view for view in self._spares if view not in kept]
        self._spares = kept[::-1]
        return surplus


def empty(directory: Path) -> None:
    """Make an empty directory, whatever views of a former server it contains."""
    remove_tree(directory)
    directory.mkdir(parents=True)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("Work on a volume whose caller had gone: %s: %s", type(error).__name__, error)


def _mount(view: CopyView) -> tuple[str, str]:
    return view.bound.volume_id, view.sub_path

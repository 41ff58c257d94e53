"""The views of all running containers: opened before a container starts, committed and reloaded at its
request, closed at its end.

The view that a container leaves is kept as a spare for the next container with the same mount. It only has to
be compared with the current version then, which is several times faster than copying; and ext4 makes new
files slowly for a minute after it has removed many (it passes over recently freed inodes one by one).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path

from modal_proto import api_pb2

from local_modal.volumes.paths import normalize
from local_modal.volumes.store import VolumeStore
from local_modal.volumes.views import BoundView, View

log = logging.getLogger(__name__)

SPARES_PER_MOUNT = 4
SPARES = 16
"""Views kept after their container has ended, per volume and sub path, and altogether; each is a full
copy."""


class NotMounted(Exception):
    """The container doesn't mount the volume."""


class MountedViews:
    """All views below one directory. File work happens in threads; one view does one thing at a time.

    Args:
        store: the volumes.
        directory: emptied at the start, since no container survives the server.
        pids: the live processes of a container.
    """

    def __init__(self, store: VolumeStore, directory: Path, pids: Callable[[str], Iterable[int]]) -> None:
        self._store = store
        self._directory = directory
        self._pids = pids
        self._views: dict[str, list[tuple[View, asyncio.Lock]]] = {}
        self._spares: list[View] = []
        """The one left last at the end."""
        self._spare_names = itertools.count()
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)

    async def open(self, task_id: str, mounts: Iterable[api_pb2.VolumeMount]) -> list[BoundView]:
        """A private copy of every mounted volume as it is now, in the order of `mounts`.

        Raises:
            UnknownVolume: a volume has been deleted.
            NotADirectoryInVolume, InvalidPath: a mount's sub path can't be mounted.
        """
        views: list[View] = []
        try:
            for index, mount in enumerate(mounts):
                host_path = self._directory / task_id / str(index)
                bound = BoundView(mount.mount_path, host_path, mount.read_only, mount.volume_id)
                sub_path = normalize(mount.sub_path)
                spare = self._take_spare(mount.volume_id, sub_path)
                views.append(await asyncio.to_thread(self._open, bound, sub_path, spare))
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, self._directory / task_id, ignore_errors=True)
            raise
        self._views[task_id] = [(view, asyncio.Lock()) for view in views]
        return [view.bound for view in views]

    async def close(self, task_id: str) -> None:
        """Take the views from a container that has ended; what it hasn't committed is lost."""
        views = self._views.pop(task_id, [])
        for view, lock in views:
            async with lock:
                if await asyncio.to_thread(self._retire, view):
                    self._spares.append(view)
        await asyncio.to_thread(shutil.rmtree, self._directory / task_id, ignore_errors=True)
        for view in self._surplus():
            await asyncio.to_thread(view.close)

    async def forget(self, volume_id: str) -> None:
        """Remove the spares of a volume that has been deleted."""
        spares = [view for view in self._spares if view.bound.volume_id == volume_id]
        self._spares = [view for view in self._spares if view not in spares]
        for view in spares:
            await asyncio.to_thread(view.close)

    async def commit(self, task_id: str, volume_id: str) -> None:
        """Publish what the container has changed.

        Raises:
            NotMounted: it doesn't mount the volume.
            UnknownVolume: the volume has been deleted.
        """
        for view, lock in self._of(task_id, volume_id):
            async with lock:
                await asyncio.to_thread(view.commit, self._pids(task_id))

    async def reload(self, task_id: str, volume_id: str) -> None:
        """Publish what the container has changed, then show it the current version.

        Raises:
            NotMounted: it doesn't mount the volume.
            OpenFiles: it uses a file of it; nothing has been done.
            UnknownVolume: the volume has been deleted.
        """
        views = self._of(task_id, volume_id)
        async with AsyncExitStack() as locks:
            for _, lock in views:
                await locks.enter_async_context(lock)
            for view, _ in views:
                await asyncio.to_thread(view.reload, self._pids(task_id))

    def _of(self, task_id: str, volume_id: str) -> list[tuple[View, asyncio.Lock]]:
        views = [
            (view, lock) for view, lock in self._views.get(task_id, ()) if view.bound.volume_id == volume_id
        ]
        if not views:
            raise NotMounted(f"Volume {volume_id} is not mounted in the container {task_id}.")
        return views

    def _open(self, bound: BoundView, sub_path: str, spare: View | None) -> View:
        if spare is not None:
            try:
                spare.renew(bound)
            except OSError as error:
                log.info("Copying %s anew: the view left by the last container: %s", bound.volume_id, error)
                spare.close()
            else:
                return spare
        view = View(self._store, bound, sub_path)
        view.open()
        return view

    def _retire(self, view: View) -> bool:
        # A process that got away from its container must not write into somebody else's view.
        if view.is_in_use():
            view.close()
            return False
        view.move(self._directory / "spare" / str(next(self._spare_names)))
        return True

    def _take_spare(self, volume_id: str, sub_path: str) -> View | None:
        for view in reversed(self._spares):
            if view.bound.volume_id == volume_id and view.sub_path == sub_path:
                self._spares.remove(view)
                return view
        return None

    def _surplus(self) -> list[View]:
        kept: list[View] = []
        for view in reversed(self._spares):
            same = [other for other in kept if _mount(other) == _mount(view)]
            if len(kept) < SPARES and len(same) < SPARES_PER_MOUNT:
                kept.append(view)
        surplus = [view for view in self._spares if view not in kept]
        self._spares = kept[::-1]
        return surplus


def _mount(view: View) -> tuple[str, str]:
    return view.bound.volume_id, view.sub_path

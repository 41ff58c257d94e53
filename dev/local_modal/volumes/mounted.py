"""The views of all running containers: opened before a container starts, committed and reloaded at its
request, removed at its end."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path

from modal_proto import api_pb2

from local_modal.volumes.paths import normalize
from local_modal.volumes.store import VolumeStore
from local_modal.volumes.views import BoundView, View


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
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)

    async def open(self, task_id: str, mounts: Iterable[api_pb2.VolumeMount]) -> list[BoundView]:
        """A private copy of every mounted volume as it is now, in the order of `mounts`.

        Raises:
            UnknownVolume: a volume has been deleted.
            NotADirectoryInVolume, InvalidPath: a mount's sub path can't be mounted.
        """
        views = []
        for index, mount in enumerate(mounts):
            bound = BoundView(
                mount.mount_path, self._directory / task_id / str(index), mount.read_only, mount.volume_id
            )
            views.append(View(self._store, bound, normalize(mount.sub_path)))
        try:
            for view in views:
                await asyncio.to_thread(view.open)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, self._directory / task_id, ignore_errors=True)
            raise
        self._views[task_id] = [(view, asyncio.Lock()) for view in views]
        return [view.bound for view in views]

    async def close(self, task_id: str) -> None:
        """Remove the container's copies; what it hasn't committed is lost."""
        self._views.pop(task_id, None)
        await asyncio.to_thread(shutil.rmtree, self._directory / task_id, ignore_errors=True)

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

"""A container's own view of a volume: a snapshot when it is mounted, committed and reloaded on request.

There are two kinds, a private copy (`copies`) and an overlay on a tree that many views share (`overlays`).
Both find changes by looking: a file whose size, times, inode and mode are as they were when its content was
last known has not changed. That is only sound if a later change must show in its times, so a file whose ctime
isn't older than the moment of looking, by the file system's own clock, is read again next time.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from local_modal.volumes import openfiles
from local_modal.volumes.beneath import Beneath
from local_modal.volumes.manifest import (
    DIRECTORY,
    FILE,
    SYMLINK,
    Changes,
    Entry,
    Manifest,
    directory,
    file,
    parents,
)
from local_modal.volumes.store import Head, VolumeStore

OPEN_FILES_MESSAGE = "there are open files preventing the operation"
"""`Volume.reload` of the SDK looks for these words to tell the user which file it is (`modal/volume.py`)."""
SERVICE_MOUNTS = "/__modal/volumes"
"""Where Modal itself mounts volumes in a container (`modal/volume.py` looks there for open files)."""

READ_ATTEMPTS = 3
"""To read what somebody replaces by something of another kind meanwhile."""

Seen = tuple[int, int, int, int, int]
"""Size, mtime and ctime in ns, inode and mode of a file whose content is known."""


class OpenFiles(Exception):
    """A process of the container uses a file of the view, which therefore can't be replaced."""


class NotADirectoryInVolume(Exception):
    """The sub path of a mount is a file."""


class ContainerGone(Exception):
    """No process of the container is left through which its mount could be reached."""


@dataclass(frozen=True)
class Layers:
    """What an overlay is mounted with."""

    lower: str
    upper: str
    work: str
    options: str


@dataclass(frozen=True)
class BoundView:
    """What the container's launcher has to mount."""

    mount_path: str
    host_path: Path
    """The directory to bind; with `layers`, the mount point of the overlay, for this container only."""
    read_only: bool
    volume_id: str
    layers: Layers | None = None
    service_path: str = ""
    """With `layers`: where the container has the view once more, writable for the server's reload."""

    def overlay(self) -> dict[str, str] | None:
        """The overlay that the launcher has to mount first, if there is one."""
        if self.layers is None:
            return None
        return {
            "target": str(self.host_path),
            "lower": self.layers.lower,
            "upper": self.layers.upper,
            "work": self.layers.work,
            "options": self.layers.options,
        }

    def binds(self) -> list[dict[str, object]]:
        """What the launcher has to bind."""
        source = str(self.host_path)
        binds: list[dict[str, object]] = [
            {"target": self.mount_path, "source": source, "read_only": self.read_only}
        ]
        if self.service_path:
            binds.insert(0, {"target": self.service_path, "source": source, "read_only": False})
        return binds


class View(ABC):
    """One volume, or one directory of it, mounted in one container. Not for use by several threads at a
    time."""

    def __init__(self, store: VolumeStore, bound: BoundView, sub_path: str = "") -> None:
        self.bound = bound
        self.sub_path = sub_path
        self._store = store
        self._seen: dict[str, tuple[Seen, Entry]] = {}
        """Files whose content is known, with how they looked then."""

    @abstractmethod
    def open(self) -> None:
        """Make the current version ready to be mounted.

        Raises:
            UnknownVolume: the volume has been deleted.
            NotADirectoryInVolume: `sub_path` is a file. Where there is nothing it is created, as on Modal.
        """

    @abstractmethod
    def close(self) -> None:
        """Remove the view; what wasn't committed is lost."""

    def commit(self, pids: Iterable[int]) -> None:
        """Publish what has changed since the last commit; a read-only mount has nothing to publish.

        Args:
            pids: the container's processes, which may have files mapped into memory.
        """
        if self.bound.read_only:
            return
        changes = self._changes(openfiles.written_through_memory(pids, self._roots()))
        if changes:
            self._store.commit(self.bound.volume_id, changes.below(self.sub_path))
            self._committed(changes)

    def reload(self, pids: Iterable[int]) -> None:
        """Commit what is pending, then make the view equal to the current version, touching only what
        differs.

        Raises:
            OpenFiles: one of the processes `pids` uses a file below the view; nothing has been done.
            ContainerGone: the container has ended.
            OSError: the disk is full, or the container has replaced directories meanwhile; part of the view
                may be current.
        """
        pids = list(pids)
        use = openfiles.find_use(pids, self._roots())
        if use is not None:
            raise OpenFiles(f"{OPEN_FILES_MESSAGE}: {use}")
        self.commit(pids)
        self._show(self._store.head(self.bound.volume_id), pids)

    @abstractmethod
    def _changes(self, always_read: set[str]) -> Changes:
        """What the container has changed since the last commit; the files in `always_read` may have changed
        without a trace."""

    @abstractmethod
    def _committed(self, changes: Changes) -> None:
        """`changes` are part of the volume now."""

    @abstractmethod
    def _show(self, head: Head, pids: Iterable[int]) -> None:
        """Make the view equal to `head`."""

    @abstractmethod
    def _shown(self, path: str, entry: Entry | None) -> None:
        """The view has `entry` at `path` now, as somebody else has committed it; None for nothing."""

    def _roots(self) -> list[str]:
        # In the container's mount namespace the view is at the mount path, without namespaces at its own.
        service_path = self.bound.service_path or f"{SERVICE_MOUNTS}/{self.bound.volume_id}"
        return [str(self.bound.host_path), self.bound.mount_path, service_path]

    def _create_sub_path(self, now_ns: int) -> Manifest:
        """The volume's current version, in which `sub_path` is a directory."""
        manifest = self._store.head(self.bound.volume_id).manifest
        if not self.sub_path:
            return manifest
        for path in (*parents(self.sub_path), self.sub_path):
            if path in manifest and manifest[path].kind != DIRECTORY:
                raise NotADirectoryInVolume(
                    f"/{path} is not a directory, so /{self.sub_path} can't be mounted"
                )
        if self.sub_path not in manifest:
            made = Changes({self.sub_path: directory(now_ns)})
            manifest = self._store.commit(self.bound.volume_id, made).manifest
        return manifest

    # Looking.

    def _read(self, tree: Beneath, path: str, status: os.stat_result) -> Entry | None:
        last = self._seen.get(path)
        if last is not None and last[0] == looks(status):
            return last[1]
        try:
            for _ in range(READ_ATTEMPTS):
                mode = status.st_mode
                if stat.S_ISREG(mode):
                    opened = tree.open_file(path)
                    if opened is not None:
                        descriptor, status = opened
                        sha256, size = self._store.blobs.put_file(descriptor)
                        entry = file(sha256, size, status.st_mode, status.st_mtime_ns)
                        self._seen[path] = (looks(status), entry)
                        return entry
                elif stat.S_ISDIR(mode):
                    return directory(status.st_mtime_ns, stat.S_IMODE(mode))
                elif stat.S_ISLNK(mode):
                    target = tree.link_target(path)
                    if target is not None:
                        return Entry(SYMLINK, 0o777, status.st_mtime_ns, target=target)
                else:
                    return None  # sockets, pipes and devices can't be kept
                status = tree.status(path)  # it has become something else since
        except (FileNotFoundError, NotADirectoryError):
            return None  # removed while we look
        raise OSError(errno.EBUSY, "It is replaced faster than it can be read", path)

    def _forget(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._seen.pop(path, None)

    def _forget_recent(self, now: int) -> None:
        # A file changed once more within this tick of the file system's clock would look the same as now.
        self._forget([path for path, (seen, _) in self._seen.items() if seen[2] >= now])

    # Changing.

    def _write_all(self, tree: Beneath, changes: Changes, backing: Beneath) -> None:
        """Make `changes` in `tree`, whose files are really in `backing`; what has been made is known as
        `_shown` also if the rest fails."""
        try:
            self._write_each(tree, changes, backing)
        except BaseException:
            self._forget(changes.puts)  # nobody has looked at the clock after writing them
            raise

    def _write_each(self, tree: Beneath, changes: Changes, backing: Beneath) -> None:
        for path in sorted(changes.deletes, reverse=True):
            self._remove(tree, path)
            self._shown(path, None)
        directories: list[str] = []
        for path in sorted(changes.puts):  # a directory before what is in it
            entry = changes.puts[path]
            self._make_room(tree, path, entry)
            if entry.kind == DIRECTORY:
                tree.make_directory(path)
                mode = stat.S_IMODE(tree.status(path).st_mode)
                self._shown(path, entry._replace(mode=mode))
                directories.append(path)
                continue
            if entry.kind == FILE:
                descriptor, name = tree.at(path)
                status = self._store.blobs.copy_to(
                    entry.sha256, name, entry.mode, entry.mtime_ns, dir_fd=descriptor
                )
                if backing is not tree:  # with numbers of its own
                    status = backing.status(path)
                self._seen[path] = (looks(status), entry)
            else:
                tree.make_link(path, entry.target)
            self._shown(path, entry)
        for path in directories:  # now that what is in them is there
            tree.set_mode(path, changes.puts[path].mode)
            self._shown(path, changes.puts[path])

    def _make_room(self, tree: Beneath, path: str, entry: Entry) -> None:
        try:
            is_directory = stat.S_ISDIR(tree.status(path).st_mode)
        except FileNotFoundError:
            return
        if is_directory and entry.kind == DIRECTORY:
            return
        tree.remove_all(path)
        self._seen.pop(path, None)
        self._shown(path, None)

    def _remove(self, tree: Beneath, path: str) -> None:
        self._seen.pop(path, None)
        try:
            tree.remove(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            # The container has put something new into the directory since the commit a moment ago: it is
            # found as a change next time.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def looks(status: os.stat_result) -> Seen:
    """What of a file's status changes when its content does."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)


def filesystem_time(root: str) -> int:
    """The time in ns that a change on the file system of `root` would be recorded with now; its clock ticks
    every few milliseconds."""
    probe = f"{root}.clock"
    with open(probe, "wb"):
        os.utime(probe)
    return os.stat(probe).st_ctime_ns


def remove_tree(directory: str | Path) -> None:
    """Remove a directory also where user code, or the kernel, has left directories without permissions."""
    shutil.rmtree(directory, ignore_errors=True)
    if os.path.isdir(directory):
        os.chmod(directory, 0o700)
        for parent, names, _ in os.walk(directory):
            for name in names:
                if not os.path.islink(f"{parent}/{name}"):
                    os.chmod(f"{parent}/{name}", 0o700)
        shutil.rmtree(directory, ignore_errors=True)

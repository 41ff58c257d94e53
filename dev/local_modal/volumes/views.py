"""A container's own copy of a volume: a snapshot when it is mounted, committed and reloaded on request.

Changes are found by looking: a file whose size, times, inode and mode are as they were when its content was
last known has not changed. That is only sound if a later change must show in its times, so a file whose ctime
isn't older than the moment of looking, by the file system's own clock, is read again next time.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from local_modal.volumes import openfiles
from local_modal.volumes.manifest import (
    DIRECTORY,
    FILE,
    SYMLINK,
    Changes,
    Entry,
    Manifest,
    apply,
    difference,
    directory,
    file,
    parents,
    subtree,
)
from local_modal.volumes.store import VolumeStore

OPEN_FILES_MESSAGE = "there are open files preventing the operation"
"""`Volume.reload` of the SDK looks for these words to tell the user which file it is (`modal/volume.py`)."""

_Seen = tuple[int, int, int, int, int]
"""Size, mtime and ctime in ns, inode and mode of a file whose content is known."""


class OpenFiles(Exception):
    """A process of the container uses a file of the view, which therefore can't be replaced."""


class NotADirectoryInVolume(Exception):
    """The sub path of a mount is a file."""


@dataclass(frozen=True)
class BoundView:
    """What the container's launcher has to mount."""

    mount_path: str
    host_path: Path
    read_only: bool
    volume_id: str


class View:
    """One volume, or one directory of it, mounted in one container. Not for use by several threads at a
    time."""

    def __init__(self, store: VolumeStore, bound: BoundView, sub_path: str = "") -> None:
        self.bound = bound
        self.sub_path = sub_path
        self._store = store
        self._root = os.path.realpath(bound.host_path)
        self._base: Manifest = {}
        """What the view holds as far as is known: the version that was last copied, with our own commits."""
        self._seen: dict[str, tuple[_Seen, Entry]] = {}
        """Files whose content is known, with how they looked then."""
        self._given_out = 0.0

    def open(self) -> None:
        """Copy the current version to `bound.host_path`.

        Raises:
            NotADirectoryInVolume: `sub_path` is a file. Where there is nothing it is created, as on Modal.
        """
        os.makedirs(self._root, mode=0o755)
        self._give_out()

    def renew(self, bound: BoundView) -> None:
        """Make the view that a container has left one for another container, as if it had just been opened.

        Only for when no process uses it any more. What was never committed, and whatever else doesn't look
        exactly as this class left it, is thrown away.

        Raises:
            NotADirectoryInVolume: as for `open`.
            OSError: the last container has left it in a state that can't be cleared; it is not to be used.
        """
        self.move(bound.host_path)
        self.bound = bound
        os.chmod(self._root, 0o755)
        self._base = self._clear_unknown()
        self._give_out()

    def move(self, host_path: Path) -> None:
        """Put the view somewhere else on the same file system."""
        os.makedirs(host_path.parent, exist_ok=True)
        os.rename(self._root, host_path)
        self.bound = replace(self.bound, host_path=host_path)
        self._root = os.path.realpath(host_path)

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
            self._base = apply(self._base, changes)

    def reload(self, pids: Iterable[int]) -> None:
        """Commit what is pending, then make the view equal to the current version, touching only what
        differs.

        Raises:
            OpenFiles: one of the processes `pids` uses a file below the view; nothing has been done.
        """
        pids = list(pids)
        use = openfiles.find_use(pids, self._roots())
        if use is not None:
            raise OpenFiles(f"{OPEN_FILES_MESSAGE}: {use}")
        self.commit(pids)
        self._sync(self._current())

    def is_in_use(self) -> bool:
        """Whether a process that may have come from the container uses something below the view, seen from
        the server's own mount namespace.
        """
        return openfiles.find_use(openfiles.processes_since(self._given_out), [self._root]) is not None

    def close(self) -> None:
        """Remove the copy; what wasn't committed is lost."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _give_out(self) -> None:
        self._sync(self._current(create=True))
        self._given_out = openfiles.boot_seconds()

    def _current(self, create: bool = False) -> dict[str, Entry]:
        manifest = self._store.head(self.bound.volume_id).manifest
        if self.sub_path and create:
            for path in (*parents(self.sub_path), self.sub_path):
                if path in manifest and manifest[path].kind != DIRECTORY:
                    raise NotADirectoryInVolume(
                        f"/{path} is not a directory, so /{self.sub_path} can't be mounted"
                    )
            if self.sub_path not in manifest:
                made = Changes({self.sub_path: directory(_filesystem_time(self._root))})
                manifest = self._store.commit(self.bound.volume_id, made).manifest
        return subtree(manifest, self.sub_path)

    def _roots(self) -> list[str]:
        # In the container's mount namespace the view is at the mount path, without namespaces at its own.
        # Modal itself mounts below /__modal/volumes (modal/volume.py looks there for open files).
        return [self._root, self.bound.mount_path, f"/__modal/volumes/{self.bound.volume_id}"]

    # Looking.

    def _look(self, known: dict[str, Entry]) -> Iterator[tuple[str, os.DirEntry[str], os.stat_result]]:
        """Everything in the view but the files that haven't changed since their content was known, which go
        to `known` instead; what vanishes while we look is left out.
        """
        seen = self._seen
        pending = [""]
        while pending:
            below = pending.pop()
            try:
                with os.scandir(f"{self._root}/{below}") as entries:
                    children = list(entries)
            except FileNotFoundError:
                continue
            prefix = f"{below}/" if below else ""
            for child in children:  # per file in the volume, so every microsecond counts
                path = prefix + child.name
                try:
                    status = child.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                last = seen.get(path)
                if last is not None and last[0] == _looks(status):
                    known[path] = last[1]
                    continue
                if stat.S_ISDIR(status.st_mode):
                    pending.append(path)
                yield path, child, status

    def _changes(self, always_read: set[str]) -> Changes:
        now = _filesystem_time(self._root)
        for path in always_read:
            self._seen.pop(path, None)
        found: dict[str, Entry] = {}
        for path, child, status in self._look(found):
            entry = self._read(path, child.path, status)
            if entry is not None:
                found[path] = entry
        self._forget_recent(now)
        for path in always_read:  # may have been written to since, without a trace
            self._seen.pop(path, None)
        changes = difference(self._base, found)
        for path in changes.deletes:
            self._seen.pop(path, None)
        return changes

    def _read(self, path: str, location: str, status: os.stat_result) -> Entry | None:
        mode = status.st_mode
        try:
            if stat.S_ISREG(mode):
                sha256, size = self._store.blobs.put_file(location)
                entry = file(sha256, size, mode, status.st_mtime_ns)
                self._seen[path] = (_looks(status), entry)
                return entry
            if stat.S_ISDIR(mode):
                return directory(status.st_mtime_ns, stat.S_IMODE(mode))
            if stat.S_ISLNK(mode):
                return Entry(SYMLINK, 0o777, status.st_mtime_ns, target=os.readlink(location))
        except FileNotFoundError:
            pass  # removed while we look
        return None  # sockets, pipes and devices can't be kept

    def _forget_recent(self, now: int) -> None:
        # A file changed once more within this tick of the file system's clock would look the same as now.
        for path in [path for path, (looks, _) in self._seen.items() if looks[2] >= now]:
            del self._seen[path]

    # Changing.

    def _sync(self, target: dict[str, Entry]) -> None:
        changes = difference(self._base, target)
        for path in sorted(changes.deletes, reverse=True):
            self._remove(path)
        for path in sorted(changes.puts):  # a directory before what is in it
            self._write(path, changes.puts[path])
        self._base = target
        if changes:
            self._forget_recent(_filesystem_time(self._root))

    def _clear_unknown(self) -> Mapping[str, Entry]:
        intact: dict[str, Entry] = {}
        unknown: list[str] = []
        for path, _, status in self._look(intact):
            if stat.S_ISDIR(status.st_mode):
                intact[path] = directory(status.st_mtime_ns, stat.S_IMODE(status.st_mode))
            else:
                unknown.append(path)
        for path in unknown:
            self._remove(path)
        self._seen = {path: seen for path, seen in self._seen.items() if path in intact}
        return intact

    def _write(self, path: str, entry: Entry) -> None:
        location = f"{self._root}/{path}"
        self._make_room(location, entry)
        if entry.kind == FILE:
            status = self._store.blobs.copy_to(entry.sha256, location, entry.mode, entry.mtime_ns)
            self._seen[path] = (_looks(status), entry)
        elif entry.kind == SYMLINK:
            os.symlink(entry.target, location)
        else:
            os.makedirs(location, exist_ok=True)
            os.chmod(location, entry.mode)

    def _make_room(self, location: str, entry: Entry) -> None:
        try:
            existing = os.lstat(location)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(existing.st_mode):
            os.unlink(location)
        elif entry.kind != DIRECTORY:
            shutil.rmtree(location)

    def _remove(self, path: str) -> None:
        self._seen.pop(path, None)
        location = f"{self._root}/{path}"
        try:
            if os.path.isdir(location) and not os.path.islink(location):
                os.rmdir(location)
            else:
                os.unlink(location)
        except FileNotFoundError:
            pass
        except OSError:
            # The container has put something new into the directory since the commit a moment ago: it is
            # found as a change next time.
            if not os.path.isdir(location):
                raise


def _looks(status: os.stat_result) -> _Seen:
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)


def _filesystem_time(root: str) -> int:
    """The time in ns that a change on the file system of `root` would be recorded with now; its clock ticks
    every few milliseconds."""
    probe = f"{root}.clock"
    with open(probe, "wb"):
        os.utime(probe)
    return os.stat(probe).st_ctime_ns

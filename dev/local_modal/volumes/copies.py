"""A view that is a private copy of the volume's files: needs nothing of the kernel, but copying and looking
take time in proportion to the volume.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from local_modal.volumes import openfiles
from local_modal.volumes.beneath import Beneath
from local_modal.volumes.manifest import Changes, Entry, Manifest, apply, difference, directory, subtree
from local_modal.volumes.store import Head, VolumeStore
from local_modal.volumes.views import BoundView, View, filesystem_time, looks, remove_tree


class CopyView(View):
    """A directory with the files of a volume, at `bound.host_path`."""

    def __init__(self, store: VolumeStore, bound: BoundView, sub_path: str = "") -> None:
        super().__init__(store, bound, sub_path)
        self._root = os.path.realpath(bound.host_path)
        self._base: Manifest = {}
        """What the view holds as far as is known: the version that was last copied, with our own commits."""
        self._given_out = 0.0

    def open(self) -> None:  # noqa: D102 - as promised by View
        os.makedirs(self._root, mode=0o755)
        self._give_out()

    def close(self) -> None:  # noqa: D102 - as promised by View
        remove_tree(self._root)

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

    def is_in_use(self) -> bool:
        """Whether a process that may have come from the container uses something below the view, seen from
        the server's own mount namespace.
        """
        return openfiles.find_use(openfiles.processes_since(self._given_out), [self._root]) is not None

    def _give_out(self) -> None:
        self._sync(subtree(self._create_sub_path(filesystem_time(self._root)), self.sub_path))
        self._given_out = openfiles.boot_seconds()

    def _roots(self) -> list[str]:
        return [self._root, *super()._roots()]

    def _look(self, tree: Beneath, known: dict[str, Entry]) -> Iterator[tuple[str, os.stat_result]]:
        """Everything in the view but the files that haven't changed since their content was known, which go
        to `known` instead; what vanishes while we look is left out.
        """
        seen = self._seen
        pending = [""]
        while pending:
            below = pending.pop()
            try:
                children = tree.children(below)
            except (FileNotFoundError, NotADirectoryError):
                if not below:
                    raise
                continue
            prefix = f"{below}/" if below else ""
            for name, status in children:  # per file in the volume, so every microsecond counts
                path = prefix + name
                last = seen.get(path)
                if last is not None and last[0] == looks(status):
                    known[path] = last[1]
                    continue
                if stat.S_ISDIR(status.st_mode):
                    pending.append(path)
                yield path, status

    def _changes(self, always_read: set[str]) -> Changes:
        now = filesystem_time(self._root)
        self._forget(always_read)
        found: dict[str, Entry] = {}
        with Beneath(self._root) as tree:
            for path, status in self._look(tree, found):
                entry = self._read(tree, path, status)
                if entry is not None:
                    found[path] = entry
        self._forget_recent(now)
        self._forget(always_read)  # may have been written to since, without a trace
        changes = difference(self._base, found)
        self._forget(changes.deletes)
        return changes

    def _committed(self, changes: Changes) -> None:
        self._base = apply(self._base, changes)

    def _shown(self, path: str, entry: Entry | None) -> None:
        assert isinstance(self._base, dict)
        if entry is None:
            self._base.pop(path, None)
        else:
            self._base[path] = entry

    def _show(self, head: Head, pids: Iterable[int]) -> None:
        self._sync(subtree(head.manifest, self.sub_path))

    def _sync(self, target: dict[str, Entry]) -> None:
        changes = difference(self._base, target)
        if changes:
            self._base = dict(self._base)
            with Beneath(self._root) as tree:
                self._write_all(tree, changes, backing=tree)
            self._forget_recent(filesystem_time(self._root))
        self._base = target

    def _clear_unknown(self) -> Mapping[str, Entry]:
        intact: dict[str, Entry] = {}
        unknown: list[str] = []
        with Beneath(self._root) as tree:
            for path, status in self._look(tree, intact):
                if stat.S_ISDIR(status.st_mode):
                    intact[path] = directory(status.st_mtime_ns, stat.S_IMODE(status.st_mode))
                else:
                    unknown.append(path)
            for path in unknown:
                self._remove(tree, path)
        self._seen = {path: seen for path, seen in self._seen.items() if path in intact}
        return intact

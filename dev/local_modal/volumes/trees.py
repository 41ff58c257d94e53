"""Volumes as file trees that many overlays have as their lower directory: made once per version, never
written to while anybody uses them.

A tree costs a directory entry per file where it can share the file with the content store or with the tree of
another version by a hard link. Two paths of one tree never share a file, so that they have inode numbers of
their own. The tree that nobody uses any more is turned into that of the current version by the next who needs
one, which costs as much as the versions differ.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from local_modal.volumes.manifest import (
    DIRECTORY,
    FILE,
    SYMLINK,
    Changes,
    Entry,
    Manifest,
    blobs_of,
    difference,
)
from local_modal.volumes.store import Head, VolumeStore
from local_modal.volumes.views import remove_tree

log = logging.getLogger(__name__)

IDLE_TREES = 16
"""Trees kept though nobody uses them, at most one per volume."""


@dataclass(eq=False)
class Tree:
    """A version of a volume in a directory."""

    volume_id: str
    path: str
    head: Head
    users: int = 0


class Trees:
    """All trees, below one directory, which is emptied at the start. Every method may be called from any
    thread."""

    def __init__(self, store: VolumeStore, directory: Path) -> None:
        self._store = store
        self._directory = directory
        self._names = itertools.count()
        self._lock = threading.Lock()
        """Guards the fields below; not held during file work."""
        self._trees: dict[str, list[Tree]] = {}
        """Per volume, the one that was used last at the end."""
        self._building: dict[str, threading.Lock] = {}
        remove_tree(directory)
        directory.mkdir(parents=True)

    def acquire(self, volume_id: str) -> Tree:
        """The tree of the current version, to be released after use.

        Raises:
            UnknownVolume: the volume has been deleted.
            OSError: the disk is full, or the like.
        """
        with self._lock:
            building = self._building.setdefault(volume_id, threading.Lock())
        with building:
            head = self._store.head(volume_id)
            with self._lock:
                trees = self._trees.setdefault(volume_id, [])
                for tree in trees:
                    if tree.head.version == head.version:
                        tree.users += 1
                        return tree
                idle = next((tree for tree in trees if not tree.users), None)
                if idle is not None:
                    trees.remove(idle)
                model = trees[-1] if trees else None
                if model is not None:
                    model.users += 1
            try:
                tree = (idle and self._renew(idle, head)) or self._build(volume_id, head, model)
                tree.users = 1
                with self._lock:
                    trees.append(tree)
            finally:
                if model is not None:
                    self.release(model)
            return tree

    def release(self, tree: Tree) -> None:
        """One user less; removes what isn't worth keeping."""
        surplus = []
        with self._lock:
            tree.users -= 1
            if not tree.users:
                if self._trees.get(tree.volume_id, [None])[-1] is not tree:
                    surplus = [tree]
                else:
                    idle = [trees[-1] for trees in self._trees.values() if trees and not trees[-1].users]
                    surplus = [other for other in idle if other is not tree][: max(0, len(idle) - IDLE_TREES)]
                for other in surplus:
                    if other in self._trees.get(other.volume_id, ()):  # not if the volume has been deleted
                        self._trees[other.volume_id].remove(other)
        for other in surplus:
            remove_tree(other.path)

    def forget(self, volume_id: str) -> None:
        """Remove the trees of a volume that has been deleted, as soon as nobody uses them."""
        with self._lock:
            trees = self._trees.pop(volume_id, [])
            self._building.pop(volume_id, None)
        for tree in trees:
            if not tree.users:
                remove_tree(tree.path)

    def contents(self) -> set[str]:
        """The contents that the trees in use may yet need."""
        with self._lock:
            trees = [tree for trees in self._trees.values() for tree in trees if tree.users]
        return set().union(*(blobs_of(tree.head.manifest.values()) for tree in trees))

    def _renew(self, tree: Tree, head: Head) -> Tree | None:
        changes = difference(tree.head.manifest, head.manifest)
        try:
            self._remove(tree, changes)
            self._fill(tree.path, changes.puts, blobs_of(tree.head.manifest.values()), None)
        except OSError as error:
            log.info("Making the file tree of %s anew: %s", tree.volume_id, error)
            remove_tree(tree.path)
            return None
        tree.head = head
        return tree

    def _build(self, volume_id: str, head: Head, model: Tree | None) -> Tree:
        path = str(self._directory / str(next(self._names)))
        os.mkdir(path, 0o755)
        try:
            self._fill(path, head.manifest, (), model)
        except BaseException:
            remove_tree(path)
            raise
        return Tree(volume_id, path, head)

    def _remove(self, tree: Tree, changes: Changes) -> None:
        replaced = [path for path in changes.puts if path in tree.head.manifest]
        for path in sorted([*changes.deletes, *replaced], reverse=True):  # what is in a directory before it
            location = f"{tree.path}/{path}"
            if tree.head.manifest[path].kind != DIRECTORY:
                os.unlink(location)
            elif path not in changes.puts or changes.puts[path].kind != DIRECTORY:
                os.rmdir(location)

    def _fill(self, root: str, puts: Manifest, taken: Collection[str], model: Tree | None) -> None:
        blobs = self._store.blobs
        linked = set(taken)
        directories: list[tuple[str, Entry]] = []
        for path in sorted(puts):  # a directory before what is in it
            entry = puts[path]
            location = f"{root}/{path}"
            if entry.kind == DIRECTORY:
                os.makedirs(location, exist_ok=True)
                directories.append((location, entry))
            elif entry.kind == SYMLINK:
                os.symlink(entry.target, location)
            elif model is not None and model.head.manifest.get(path) is entry:
                os.link(f"{model.path}/{path}", location)
                linked.add(entry.sha256)
            elif (
                entry.kind == FILE
                and entry.sha256 not in linked
                and blobs.link_to(entry.sha256, location, entry.mode, entry.mtime_ns)
            ):
                linked.add(entry.sha256)
            else:
                blobs.copy_to(entry.sha256, location, entry.mode, entry.mtime_ns)
        for location, entry in directories:  # now that what is in them is there
            os.chmod(location, entry.mode)

"""From one version of a volume to the next: immutable manifests on disk, and a HEAD that is swapped
atomically.

    <root>/blobs/ab/cdef…            contents (see `blobs`)
    <root>/manifests/<volume id>/HEAD          the number of the current version
    <root>/manifests/<volume id>/<number>      what changed since the version before, or now and then
    everything

A commit of one file into a volume of 10,000 writes a few hundred bytes. What `commit` returned from survives
the death of the server (it has been handed to the kernel); a crash in the middle leaves the version before.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from local_modal.volumes.blobs import BlobStore
from local_modal.volumes.limits import VERSION_2, Limits
from local_modal.volumes.manifest import Changes, Entry, Manifest, apply, blobs_of, difference

FULL_EVERY = 64
"""Versions between two that are written out in full; bounds what `open` has to read."""
UPLOAD_GRACE_SECONDS = 3600.0
READ_GRACE_SECONDS = 300.0


class UnknownVolume(Exception):
    """The volume has been deleted, or was never there."""


@dataclass(frozen=True)
class Head:
    """The current version of a volume: a snapshot that later commits don't change."""

    version: int
    manifest: Manifest


class VolumeStore:
    """All volumes' files; every method may be called from any thread, commits to one volume happen one after
    the other."""

    def __init__(self, root: Path) -> None:
        self._manifests = root / "manifests"
        self._manifests.mkdir(parents=True, exist_ok=True)
        self.blobs = BlobStore(root / "blobs")
        self._heads: dict[str, Head] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._limits: dict[str, Limits] = {}
        for directory in self._manifests.iterdir():
            if not (directory / "HEAD").exists():  # died while it was being created or deleted
                shutil.rmtree(directory)
                continue
            self._heads[directory.name] = _read_head(directory)
            _remove_leftovers(directory, self._heads[directory.name].version)
            self._locks[directory.name] = threading.Lock()

    def volume_ids(self) -> set[str]:
        """The volumes that exist."""
        return set(self._heads)

    def create(self, volume_id: str, limits: Limits = VERSION_2) -> None:
        """Make an empty volume; if it is there already it only gets the limits, which aren't kept on disk."""
        self._limits[volume_id] = limits
        if volume_id not in self._heads:
            directory = self._manifests / volume_id
            directory.mkdir(exist_ok=True)
            _write_version(directory, 0, {"puts": {}, "deletes": None})
            self._locks[volume_id] = threading.Lock()
            self._heads[volume_id] = Head(0, {})

    def delete(self, volume_id: str) -> None:
        """Remove a volume; its contents go later, see `sweep`."""
        lock = self._locks.get(volume_id)
        if lock is None:
            return
        with lock:
            head = self._heads.pop(volume_id, None)
            if head is not None:
                self.blobs.supersede(blobs_of(head.manifest.values()))
            self._locks.pop(volume_id, None)
            self._limits.pop(volume_id, None)
            directory = self._manifests / volume_id
            (directory / "HEAD").unlink(
                missing_ok=True
            )  # first, so that a crash leaves nothing that looks whole
            shutil.rmtree(directory, ignore_errors=True)

    def head(self, volume_id: str) -> Head:
        """The current version.

        Raises:
            UnknownVolume: there is no such volume.
        """
        try:
            return self._heads[volume_id]
        except KeyError:
            raise UnknownVolume(volume_id) from None

    def commit(self, volume_id: str, changes: Changes) -> Head:
        """Put `changes`, whatever version they were made from, on top of the current one; the last commit of
        a path wins.

        Raises:
            UnknownVolume: there is no such volume.
            LimitExceeded: it would become too big.
        """
        return self.update(volume_id, lambda _: changes)

    def update(self, volume_id: str, compute: Callable[[Manifest], Changes]) -> Head:
        """Put on top of the current version what `compute` makes of it; nobody else commits in between.

        Raises:
            UnknownVolume: there is no such volume.
            LimitExceeded: it would become too big.
        """
        lock = self._locks.get(volume_id)
        if lock is None:
            raise UnknownVolume(volume_id)
        with lock:
            old = self.head(volume_id).manifest
            new, effect = self.rehearse(volume_id, compute)
            if effect:
                self._write(volume_id, new, effect)
                self._heads[volume_id] = new
                replaced = (old[path] for path in (*effect.deletes, *effect.puts) if path in old)
                self.blobs.supersede(blobs_of(replaced))
            return new

    def rehearse(self, volume_id: str, compute: Callable[[Manifest], Changes]) -> tuple[Head, Changes]:
        """What `update` would lead to, and how it would differ from the current version; changes nothing.

        Raises:
            UnknownVolume, LimitExceeded: as for `update`.
        """
        head = self.head(volume_id)
        manifest = apply(head.manifest, compute(head.manifest))
        # Not the requested changes but their effect is recorded: reading it back needs no rules.
        effect = difference(head.manifest, manifest)
        if not effect:
            return head, effect
        self._limits.get(volume_id, VERSION_2).check(effect, manifest)
        return Head(head.version + 1, manifest), effect

    def collect_garbage(self, grace: float = UPLOAD_GRACE_SECONDS) -> int:
        """Remove contents that no volume's current version has; returns how many.

        Only for when no view is open and no upload under way: at the server's start.
        """
        return self.blobs.collect_garbage(self._contents(), grace)

    def sweep(self, used: Collection[str], after: float = READ_GRACE_SECONDS) -> int:
        """Remove contents that have been replaced and that no current version has; returns how many. For
        when the server is at work: a log that is committed every few seconds would fill the disk.

        Args:
            used: contents that views may yet need.
            after: seconds that a content is kept because a client may be downloading it.
        """
        if not self.blobs.has_superseded:
            return 0
        return self.blobs.remove_superseded(self._contents(), used, after)

    def _contents(self) -> set[str]:
        return set().union(*(blobs_of(head.manifest.values()) for head in list(self._heads.values())))

    def _write(self, volume_id: str, head: Head, effect: Changes) -> None:
        directory = self._manifests / volume_id
        if head.version % FULL_EVERY:
            _write_version(directory, head.version, {"puts": effect.puts, "deletes": list(effect.deletes)})
            return
        _write_version(directory, head.version, {"puts": dict(head.manifest), "deletes": None})
        for old in range(head.version - FULL_EVERY, head.version):
            (directory / str(old)).unlink(missing_ok=True)


def _write_version(directory: Path, version: int, content: dict[str, object]) -> None:
    # Surrogates, which stand for names that aren't UTF-8, survive JSON's ASCII escapes.
    _replace(directory / str(version), json.dumps(content, separators=(",", ":")))
    _replace(directory / "HEAD", str(version))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="ascii")
    os.rename(temporary, path)


def _remove_leftovers(directory: Path, version: int) -> None:
    """Remove what a crash in the middle of a commit has left: unfinished files, and versions that were to be
    removed or didn't become the current one."""
    kept = {str(number) for number in range(version - version % FULL_EVERY, version + 1)} | {"HEAD"}
    for path in directory.iterdir():
        if path.name not in kept:
            path.unlink()


def _read_head(directory: Path) -> Head:
    version = int((directory / "HEAD").read_text(encoding="ascii"))
    steps: list[Changes] = []
    for number in range(version, -1, -1):
        content = json.loads((directory / str(number)).read_text(encoding="ascii"))
        puts = {path: Entry(*fields) for path, fields in content["puts"].items()}
        steps.append(Changes(puts, content["deletes"] or ()))
        if content["deletes"] is None:  # written in full
            break
    manifest: dict[str, Entry] = {}
    for step in reversed(steps):
        for path in step.deletes:
            del manifest[path]
        manifest.update(step.puts)
    return Head(version, manifest)

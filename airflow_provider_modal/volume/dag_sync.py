"""How does a folder of files become the environment's DAG tree, all at once?

In three steps, each of which may be repeated: contents and the new version are stored beside the tree, where
nobody uses them yet; one note switches to the new version (see ``volume.dag_tree``); then the tree follows.
Interrupted before the note, the old version goes on; after it, the new one counts and somebody completes the
tree. Only contents that the Volume has not got are moved.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.volume import dag_tree, dag_versions
from airflow_provider_modal.volume.dag_lock import Lease
from airflow_provider_modal.volume.dag_versions import DagVersion
from airflow_provider_modal.volume.digests import sha256_of
from airflow_provider_modal.volume.files import VolumeFiles


@dataclass(frozen=True)
class LocalFile:
    """A file to be in the tree.

    :param source: where it is.
    :param size: bytes.
    """

    source: Path
    size: int
    sha256: str

    @classmethod
    def of(cls, source: Path) -> LocalFile:
        """Return what a file holds at the moment."""
        return cls(source, source.stat().st_size, sha256_of(source))


@dataclass(frozen=True)
class Plan:
    """The difference between a folder and the tree.

    :param added: bytes by path.
    :param changed: bytes by path.
    :param removed: paths.
    :param kept: paths that only the tree has, and that stay.
    :param unchanged: how many files are the same.
    :param target: sha256 by path, of all files afterwards.
    """

    added: dict[str, int]
    changed: dict[str, int]
    removed: list[str]
    kept: list[str]
    unchanged: int
    target: dict[str, str]

    @property
    def empty(self) -> bool:
        """Nothing is to be done."""
        return not (self.added or self.changed or self.removed)

    @property
    def empties(self) -> bool:
        """Nothing that is there now would stay."""
        return bool(self.removed) and not (self.changed or self.kept or self.unchanged)

    @property
    def size(self) -> int:
        """Bytes of the files that are added or changed."""
        return sum(self.added.values()) + sum(self.changed.values())


def plan(
    present: Mapping[str, str],
    local: Mapping[str, LocalFile],
    *,
    delete: bool,
    spared: Callable[[str], bool] = lambda path: False,
) -> Plan:
    """Return what makes the tree the same as a folder.

    :param present: sha256 by path: what the tree holds.
    :param local: what the folder holds, by path in the tree.
    :param delete: remove what the folder does not have.
    :param spared: tells which paths are left alone all the same.
    """
    only_there = sorted(present.keys() - local.keys())
    removed = [path for path in only_there if delete and not spared(path)]
    gone = set(removed)
    return Plan(
        added={path: file.size for path, file in sorted(local.items()) if path not in present},
        changed={
            path: file.size
            for path, file in sorted(local.items())
            if path in present and present[path] != file.sha256
        },
        removed=removed,
        kept=[path for path in only_there if path not in gone],
        unchanged=sum(1 for path, file in local.items() if present.get(path) == file.sha256),
        target={
            **{path: sha256 for path, sha256 in present.items() if path not in gone},
            **{path: file.sha256 for path, file in local.items()},
        },
    )


def settle(files: VolumeFiles) -> DagVersion:
    """Return the version that the tree holds, after what an interrupted change has left is completed.

    Only for who holds the lock of the tree.
    """
    change = dag_tree.read_change(files)
    if change is not None:
        dag_tree.complete(files, change)
    return dag_versions.snapshot(files)


def carry_out(
    files: VolumeFiles,
    lease: Lease,
    planned: Plan,
    local: Mapping[str, LocalFile],
    *,
    largest: int,
    switched: Callable[[], None] = lambda: None,
    done: Callable[[int], None] = lambda number: None,
) -> DagVersion:
    """Make the tree what a plan says, and return its version.

    :param lease: the lock of the tree.
    :param largest: bytes of the largest file of the version before.
    :param switched: called once the new version counts.
    :param done: told how many files were uploaded or removed, each time some were.
    :raises ModalflowError: a file changed since it was planned.
    """
    version = DagVersion.of(planned.target, max([largest, *(file.size for file in local.values())]))
    with tempfile.TemporaryDirectory(prefix="modalflow-sync-") as folder:
        # Copies, because what is stored under a digest must be what the digest is of.
        copies = _copied(planned, local, Path(folder))
        stored = {entry.path.rpartition("/")[2] for entry in files.list(dag_tree.FILES_FOLDER)}
        new = {sha256: copy for sha256, copy in copies.items() if sha256 not in stored}
        dag_versions.store(files, version, new, done)
        lease.require()
        put = {path: planned.target[path] for path in (*planned.added, *planned.changed)}
        change = dag_tree.Change(version.digest, put, planned.removed)
        dag_tree.announce(files, change)
        switched()
        dag_tree.complete(files, change, copies, done)
    return version


def _copied(planned: Plan, local: Mapping[str, LocalFile], folder: Path) -> dict[str, Path]:
    copies: dict[str, Path] = {}
    for path in (*planned.added, *planned.changed):
        file = local[path]
        if file.sha256 in copies:
            continue
        copy = folder / file.sha256
        try:
            shutil.copyfile(file.source, copy)
        except FileNotFoundError:
            raise ModalflowError(
                f"{file.source} was removed meanwhile; nothing was changed, start it again"
            ) from None
        if sha256_of(copy) != file.sha256:
            raise ModalflowError(f"{file.source} changed meanwhile; nothing was changed, start it again")
        copies[file.sha256] = copy
    return copies

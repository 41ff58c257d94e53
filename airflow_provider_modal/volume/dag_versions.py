"""Which DAG code is current?

``dags/`` on the Volume is a plain tree into which people put files at any time, with our commands or with
Modal's. A **DAG version** is an immutable picture of it: the digest of its sorted (path, sha256) pairs.

    .modalflow/dag-files/{sha256}        content of a file, stored once
    .modalflow/dag-versions/{digest}.json  which paths have which content
    .modalflow/dags-head.json            the current version, and the listing that it was made from

``snapshot`` costs one listing and one read while nothing changes. ``volume.dag_copies`` puts a version onto
local disk, for parser and workers alike, so that a task runs with the code that was parsed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_modal import names
from airflow_provider_modal.errors import ModalflowError, NotFoundError
from airflow_provider_modal.volume import dag_tree
from airflow_provider_modal.volume.dag_lock import DagTreeLock, TreeBusyError
from airflow_provider_modal.volume.dag_tree import FILES_FOLDER
from airflow_provider_modal.volume.digests import sha256_of
from airflow_provider_modal.volume.files import Entry, VolumeFiles
from airflow_provider_modal.volume.paths import inner_path

log = logging.getLogger(__name__)

VERSIONS_FOLDER = f"{names.INTERNAL_FOLDER}/dag-versions"
HEAD_PATH = f"{names.INTERNAL_FOLDER}/dags-head.json"
HEAD_VARIABLE = "MODALFLOW_DAG_VERSION"
"""Environment variable that names the version which is current for a process in a container."""

FORMAT = 1
RACY_SECONDS = 5.0
"""A file modified less than this before its listing may change again without its mtime (whole seconds)
showing it; allows for clocks that differ by a few seconds. Such a file is read again next time."""
SNAPSHOT_ATTEMPTS = 5
LOCK_WAIT_SECONDS = 5.0
"""How long a snapshot waits for ``dags sync`` or ``clean`` before it makes do with the version before."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class TreeKeepsChangingError(ModalflowError):
    """Files of ``dags/`` changed during every attempt to take a snapshot."""


@dataclass(frozen=True)
class DagVersion:
    """An immutable picture of the DAG tree.

    :param digest: identifies it; equal trees have equal digests.
    :param files: sha256 of the content by path below ``dags/``.
    :param largest: bytes of its largest file; 0 if that is not known.
    """

    digest: str
    files: dict[str, str]
    largest: int = field(default=0, compare=False)

    @classmethod
    def of(cls, files: Mapping[str, str], largest: int = 0) -> DagVersion:
        """Return the version that consists of these files."""
        ordered = dict(sorted(files.items()))
        canonical = json.dumps(list(ordered.items()), ensure_ascii=True, separators=(",", ":"))
        return cls(hashlib.sha256(canonical.encode()).hexdigest(), ordered, largest)

    def manifest(self) -> bytes:
        """Return what is stored of it beside the contents."""
        data = {"format": FORMAT, "files": self.files, "largest": self.largest}
        return json.dumps(data, sort_keys=True).encode()


@dataclass(frozen=True)
class _Seen:
    """What the listing said about a file when its content was read.

    :param settled: a later change is certain to show in size or mtime.
    """

    size: int
    mtime: float
    sha256: str
    settled: bool


@dataclass(frozen=True)
class _Head:
    digest: str
    listing: dict[str, _Seen] = field(default_factory=dict)

    def version(self) -> DagVersion:
        return _version_of(self.listing)


@dataclass(frozen=True)
class _Picture:
    """What the tree holds.

    :param local: copies of what had to be read, by sha256.
    """

    listing: dict[str, _Seen]
    local: dict[str, Path]


def snapshot(
    files: VolumeFiles, *, lock: DagTreeLock | None = None, clock: Callable[[], float] = time.time
) -> DagVersion:
    """Return the version that ``dags/`` holds now; store it if it is new.

    Files that change meanwhile lead to another attempt, so that a version never mixes an upload's old and new
    files. A change by ``dags sync`` counts from its beginning, and is completed here if nobody is at it.

    :param lock: taken while something is stored. While somebody else has it the version before is returned,
        if there is one. None: the caller holds it, or nobody else can be there.
    :param clock: the current time in seconds since the epoch.
    :raises TreeKeepsChangingError: the tree did not hold still for any of several attempts.
    :raises TreeBusyError: somebody else has the lock, and there is no version before.
    """
    previous = _read_head(files)
    for _ in range(SNAPSHOT_ATTEMPTS):
        with _picture(files, previous, clock) as picture:
            if picture is not None:
                return _store(files, lock, previous, picture)
        wanted = _wanted(files, lock)
        if wanted is not None:
            return wanted
    raise TreeKeepsChangingError(_KEEPS_CHANGING)


def contents(files: VolumeFiles, *, clock: Callable[[], float] = time.time) -> dict[str, str]:
    """Return the sha256 of what ``dags/`` holds now, or will once a change is complete; store nothing.

    :raises TreeKeepsChangingError: the tree did not hold still for any of several attempts.
    """
    for _ in range(SNAPSHOT_ATTEMPTS):
        with _picture(files, _read_head(files), clock) as picture:
            if picture is not None:
                return {path: seen.sha256 for path, seen in picture.listing.items()}
        change = dag_tree.read_change(files)
        if change is not None:
            return read_version(files, change.digest).files
    raise TreeKeepsChangingError(_KEEPS_CHANGING)


def head(files: VolumeFiles) -> str | None:
    """Return the digest of the last version that ``snapshot`` saw; None before the first one."""
    return _read_head(files).digest or None


def current(files: VolumeFiles) -> str | None:
    """Return the digest of the version that ``dags/`` holds now; None if no snapshot shows it yet.

    A change that shows neither in size nor in the time of modification is only found by ``snapshot``.
    """
    tree = dag_tree.listed(files)
    head = _read_head(files)
    if tree.changing or {path: (seen.size, seen.mtime) for path, seen in head.listing.items()} != {
        path: (entry.size, entry.mtime) for path, entry in tree.files.items()
    }:
        return None
    return head.digest or DagVersion.of({}).digest


@contextmanager
def _picture(files: VolumeFiles, previous: _Head, clock: Callable[[], float]) -> Iterator[_Picture | None]:
    """Look at the tree, reading what changed; None while a change by ``dags sync`` is under way."""
    for _ in range(SNAPSHOT_ATTEMPTS):
        taken_at = clock()
        tree = dag_tree.listed(files)
        if not tree.files and previous.listing:
            # An empty listing would deactivate every DAG: only believed when it is empty twice.
            tree = dag_tree.listed(files)
        if tree.changing:
            yield None
            return
        unread = {
            path: entry
            for path, entry in tree.files.items()
            if not _unchanged(previous.listing.get(path), entry)
        }
        if not unread:
            yield _Picture({path: previous.listing[path] for path in tree.files}, {})
            return
        with tempfile.TemporaryDirectory(prefix="modalflow-") as folder:
            read = _read_unmoved(files, tree, unread, Path(folder))
            if read is None:
                continue
            listing = dict(previous.listing)
            for path, (sha256, _) in read.items():
                entry = unread[path]
                settled = entry.mtime < taken_at - RACY_SECONDS
                listing[path] = _Seen(entry.size, entry.mtime, sha256, settled)
            yield _Picture({path: listing[path] for path in tree.files}, dict(read.values()))
            return
    raise TreeKeepsChangingError(_KEEPS_CHANGING)


def _unchanged(seen: _Seen | None, entry: Entry) -> bool:
    return seen is not None and seen.settled and (seen.size, seen.mtime) == (entry.size, entry.mtime)


def _read_unmoved(
    files: VolumeFiles, tree: dag_tree.Tree, wanted: Mapping[str, Entry], folder: Path
) -> dict[str, tuple[str, Path]] | None:
    """Return sha256 and local copy of files; None if the tree is not the listed one any more."""
    local = {path: folder / str(number) for number, path in enumerate(wanted)}
    largest = max(entry.size for entry in wanted.values())
    try:
        files.fetch({f"{names.DAGS_FOLDER}/{path}": copy for path, copy in local.items()}, largest)
    except FileNotFoundError:
        return None
    if any(copy.stat().st_size != wanted[path].size for path, copy in local.items()):
        return None
    if dag_tree.listed(files) != tree:
        return None
    return {path: (sha256_of(copy), copy) for path, copy in local.items()}


def _wanted(files: VolumeFiles, lock: DagTreeLock | None) -> DagVersion | None:
    """Return the version that a change under way wants; None if the tree shows it by now.

    A change whose author is gone is completed.
    """
    change = dag_tree.read_change(files)
    if change is None:
        return None
    if lock is not None:
        try:
            with lock.hold("the completion of an interrupted modalflow dags sync", wait=0):
                left = dag_tree.read_change(files)
                if left is not None:
                    dag_tree.complete(files, left)
                return None
        except TreeBusyError:
            # Its author is at it, or has ended a moment ago; either way, what counts is what it wants.
            pass
    return read_version(files, change.digest)


def _store(files: VolumeFiles, lock: DagTreeLock | None, previous: _Head, picture: _Picture) -> DagVersion:
    version = _version_of(picture.listing)
    if version.digest != previous.digest:
        try:
            with lock.hold("a new DAG version", LOCK_WAIT_SECONDS) if lock else nullcontext():
                store(files, version, picture.local)
        except TreeBusyError as error:
            if not previous.digest:
                raise
            log.warning("DAG version %s stays for now: %s", previous.digest[:12], error)
            return previous.version()
    # Last, because whoever follows the head must find all of its version.
    if (version.digest, picture.listing) != (previous.digest, previous.listing):
        files.write(HEAD_PATH, _head_bytes(_Head(version.digest, picture.listing)))
    return version


def store(
    files: VolumeFiles,
    version: DagVersion,
    local: Mapping[str, Path],
    done: Callable[[int], None] = lambda number: None,
) -> None:
    """Store a version with the contents that are new; does not make it the current one.

    Only for who holds the lock of the tree: ``clean`` removes what no version refers to.

    :param local: copies of contents by sha256; what is missing here must be stored already.
    :param done: told how many contents were uploaded, each time some were.
    """
    for batch in dag_tree.batches({sha256: copy.stat().st_size for sha256, copy in local.items()}):
        files.write_many({f"{FILES_FOLDER}/{sha256}": local[sha256] for sha256 in batch})
        done(len(batch))
    files.write(f"{VERSIONS_FOLDER}/{version.digest}.json", version.manifest())


def _version_of(listing: Mapping[str, _Seen]) -> DagVersion:
    largest = max((seen.size for seen in listing.values()), default=0)
    return DagVersion.of({path: seen.sha256 for path, seen in listing.items()}, largest)


def _head_bytes(head: _Head) -> bytes:
    listing = {path: asdict(seen) for path, seen in head.listing.items()}
    return json.dumps({"format": FORMAT, "digest": head.digest, "listing": listing}, sort_keys=True).encode()


def _read_head(files: VolumeFiles) -> _Head:
    """Return the head; an empty one if there is none or it can't be understood (everything is read again)."""
    try:
        data = json.loads(files.read(HEAD_PATH))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}")
        return _Head(data["digest"], {path: _Seen(**seen) for path, seen in data["listing"].items()})
    except FileNotFoundError:
        return _Head("")
    except (KeyError, TypeError, ValueError) as error:
        log.warning("%s is not one of ours (%s); the DAG tree is read afresh", HEAD_PATH, error)
        return _Head("")


def read_version(files: VolumeFiles, digest: str) -> DagVersion:
    """Return which files a stored version consists of.

    :raises NotFoundError: the Volume does not hold this version.
    :raises ModalflowError: its manifest is damaged.
    """
    path = f"{VERSIONS_FOLDER}/{digest}.json"
    try:
        manifest: dict[str, Any] = json.loads(files.read_immutable(path))
        for file, sha256 in manifest["files"].items():
            inner_path(file)
            if not _DIGEST.fullmatch(sha256):
                raise ValueError(f"{sha256!r} is not a digest")
        version = DagVersion.of(manifest["files"], int(manifest.get("largest", 0)))
    except FileNotFoundError:
        raise NotFoundError(
            f"DAG version {digest[:12]} is not on the Volume ({path}): modalflow clean removes those of runs "
            "that ended long ago; clear such a run with the latest version of the DAG"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModalflowError(f"{path} on the Volume is damaged: {error}") from None
    if version.digest != digest:
        raise ModalflowError(f"{path} on the Volume is damaged: its files make version {version.digest[:12]}")
    return version


_KEEPS_CHANGING = (
    f"files of {names.DAGS_FOLDER}/ on the Volume changed during each of {SNAPSHOT_ATTEMPTS} attempts to "
    "read them together; wait until the upload has ended"
)

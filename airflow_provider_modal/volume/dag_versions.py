"""Which DAG code is current, and how does a container get exactly that?

``dags/`` on the Volume is a plain tree into which people put files at any time, with our commands or with
Modal's. A **DAG version** is an immutable picture of it: the digest of its sorted (path, sha256) pairs.

    .modalflow/dag-files/{sha256}        content of a file, stored once
    .modalflow/dag-versions/{digest}.json  which paths have which content
    .modalflow/dags-head.json            the current version, and the listing that it was made from

``snapshot`` is called by one process at a time (the scheduler's lock holder) and costs one listing and one
read while nothing changes. ``materialise`` puts a version onto local disk, for parser and workers alike, so
that a task runs with the code that was parsed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_modal import airflow_settings, names
from airflow_provider_modal.errors import ModalflowError, NotFoundError
from airflow_provider_modal.volume.files import Entry, VolumeFiles
from airflow_provider_modal.volume.paths import below, inner_path

log = logging.getLogger(__name__)

FILES_FOLDER = f"{names.INTERNAL_FOLDER}/dag-files"
VERSIONS_FOLDER = f"{names.INTERNAL_FOLDER}/dag-versions"
HEAD_PATH = f"{names.INTERNAL_FOLDER}/dags-head.json"
HEAD_VARIABLE = "MODALFLOW_DAG_VERSION"
"""Environment variable that names the version which is current for a process in a container."""

FORMAT = 1
RACY_SECONDS = 5.0
"""A file modified less than this before its listing may change again without its mtime (whole seconds)
showing it; allows for clocks that differ by a few seconds. Such a file is read again next time."""
SNAPSHOT_ATTEMPTS = 5

_DIGEST = re.compile(r"[0-9a-f]{64}")


class TreeKeepsChangingError(ModalflowError):
    """Files of ``dags/`` changed during every attempt to take a snapshot."""


@dataclass(frozen=True)
class DagVersion:
    """An immutable picture of the DAG tree.

    :param digest: identifies it; equal trees have equal digests.
    :param files: sha256 of the content by path below ``dags/``.
    """

    digest: str
    files: dict[str, str]

    @classmethod
    def of(cls, files: Mapping[str, str]) -> DagVersion:
        """Return the version that consists of these files."""
        ordered = dict(sorted(files.items()))
        canonical = json.dumps(list(ordered.items()), ensure_ascii=True, separators=(",", ":"))
        return cls(hashlib.sha256(canonical.encode()).hexdigest(), ordered)


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
        return DagVersion(self.digest, {path: seen.sha256 for path, seen in sorted(self.listing.items())})


def snapshot(files: VolumeFiles, *, clock: Callable[[], float] = time.time) -> DagVersion:
    """Return the version that ``dags/`` holds now; store it if it is new.

    Call it from one process at a time. Files that change meanwhile lead to another attempt, so that a version
    never mixes an upload's old and new files.

    :param clock: the current time in seconds since the epoch.
    :raises TreeKeepsChangingError: the tree did not hold still for any of several attempts.
    """
    previous = _read_head(files)
    for _ in range(SNAPSHOT_ATTEMPTS):
        taken_at = clock()
        entries = _dag_files(files)
        if not entries and previous.listing:
            # An empty listing would deactivate every DAG: only believed when it is empty twice.
            entries = _dag_files(files)
        unread = [p for p, entry in entries.items() if not _unchanged(previous.listing.get(p), entry)]
        if not unread and previous.digest and entries.keys() == previous.listing.keys():
            return previous.version()
        contents = _read_unmoved(files, entries, unread)
        if contents is not None:
            return _store(files, previous, entries, contents, taken_at)
    raise TreeKeepsChangingError(
        f"files of {names.DAGS_FOLDER}/ on the Volume changed during each of {SNAPSHOT_ATTEMPTS} attempts to "
        "read them together; wait until the upload has ended"
    )


def head(files: VolumeFiles) -> str | None:
    """Return the digest of the last version that ``snapshot`` saw; None before the first one."""
    return _read_head(files).digest or None


def current(files: VolumeFiles) -> str | None:
    """Return the digest of the version that ``dags/`` holds now; None if no snapshot shows it yet.

    A change that shows neither in size nor in the time of modification is only found by ``snapshot``.
    """
    entries = _dag_files(files)
    head = _read_head(files)
    if {path: (seen.size, seen.mtime) for path, seen in head.listing.items()} != {
        path: (entry.size, entry.mtime) for path, entry in entries.items()
    }:
        return None
    return head.digest or DagVersion.of({}).digest


def default_root() -> Path:
    """Return where containers of an environment materialise versions."""
    return airflow_settings.local_root() / "dag-versions"


def local_path(root: Path, digest: str) -> Path:
    """Return where below ``root`` a version is materialised; it is complete if that folder exists.

    :raises ValueError: ``digest`` is not a version's digest.
    """
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is not the digest of a DAG version")
    return root / digest


def materialise(files: VolumeFiles, digest: str, root: Path) -> Path:
    """Put a version onto local disk and return its folder; free if it is there already.

    Processes and threads may call it at the same time: one works, the others wait for it. The folder appears
    complete or not at all.

    :raises NotFoundError: the Volume does not hold this version.
    :raises ModalflowError: a stored file is damaged.
    """
    target = local_path(root, digest)
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f".{digest}.lock"):
        if target.is_dir():
            return target
        partial = root / f".{digest}.partial"
        # Left by a process that died half-way; nobody else works on it while we hold the lock.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for path, content in _contents(files, read_version(files, digest)):
            local = below(partial, path)
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(content)
        os.rename(partial, target)
    return target


def is_dag_tree_path(path: str) -> bool:
    """Return whether a path below ``dags/`` belongs to versions: not caches, not folders that are hidden."""
    *folders, name = path.split("/")
    hidden = any(folder.startswith(".") or folder == "__pycache__" for folder in folders)
    return not hidden and not name.endswith(".pyc")


def _dag_files(files: VolumeFiles) -> dict[str, Entry]:
    """Return the listing of ``dags/`` by path below it."""
    prefix = f"{names.DAGS_FOLDER}/"
    found: dict[str, Entry] = {}
    for entry in files.list(names.DAGS_FOLDER, recursive=True):
        path = entry.path.removeprefix(prefix)
        # The listing of a file named "dags" is that file.
        if entry.is_dir or path == entry.path or not is_dag_tree_path(path):
            continue
        if not entry.is_file:
            log.warning("%s is not a regular file and no part of the DAG version", entry.path)
            continue
        found[inner_path(path)] = entry
    return found


def _unchanged(seen: _Seen | None, entry: Entry) -> bool:
    return seen is not None and seen.settled and (seen.size, seen.mtime) == (entry.size, entry.mtime)


def _read_unmoved(
    files: VolumeFiles, entries: Mapping[str, Entry], paths: list[str]
) -> dict[str, bytes] | None:
    """Return the contents of ``paths``; None if the tree is not the listed one any more."""
    try:
        contents = files.read_many(f"{names.DAGS_FOLDER}/{path}" for path in paths)
    except FileNotFoundError:
        return None
    by_path = dict(zip(paths, contents.values(), strict=True))
    if any(len(content) != entries[path].size for path, content in by_path.items()):
        return None
    return by_path if _dag_files(files) == entries else None


def _store(
    files: VolumeFiles,
    previous: _Head,
    entries: Mapping[str, Entry],
    contents: Mapping[str, bytes],
    taken_at: float,
) -> DagVersion:
    listing: dict[str, _Seen] = {}
    by_sha: dict[str, bytes] = {}
    for path, entry in entries.items():
        if path in contents:
            sha256 = hashlib.sha256(contents[path]).hexdigest()
            by_sha[sha256] = contents[path]
        else:
            sha256 = previous.listing[path].sha256
        settled = entry.mtime < taken_at - RACY_SECONDS
        listing[path] = _Seen(entry.size, entry.mtime, sha256, settled)
    version = DagVersion.of({path: seen.sha256 for path, seen in listing.items()})
    if version.digest != previous.digest:
        manifest = json.dumps({"format": FORMAT, "files": version.files}, sort_keys=True).encode()
        files.write_many(
            {
                **{f"{FILES_FOLDER}/{sha256}": content for sha256, content in by_sha.items()},
                f"{VERSIONS_FOLDER}/{version.digest}.json": manifest,
            }
        )
    # Last, because whoever follows the head must find all of its version.
    if (version.digest, listing) != (previous.digest, previous.listing):
        files.write(HEAD_PATH, _head_bytes(_Head(version.digest, listing)))
    return version


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
        version = DagVersion.of(manifest["files"])
    except FileNotFoundError:
        raise NotFoundError(
            f"DAG version {digest[:12]} is not on the Volume ({path}); it was removed there"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModalflowError(f"{path} on the Volume is damaged: {error}") from None
    if version.digest != digest:
        raise ModalflowError(f"{path} on the Volume is damaged: its files make version {version.digest[:12]}")
    return version


def _contents(files: VolumeFiles, version: DagVersion) -> Iterator[tuple[str, bytes]]:
    """Yield path and verified content of every file of a version; what the mount lacks is read in one go."""
    paths = {sha: f"{FILES_FOLDER}/{sha}" for sha in version.files.values()}
    remote = [path for path in paths.values() if not files.mounted(path)]
    try:
        fetched = files.read_many(remote)
        for path, sha in version.files.items():
            content = fetched[paths[sha]] if paths[sha] in fetched else files.read_immutable(paths[sha])
            if hashlib.sha256(content).hexdigest() != sha:
                # The mount may have been written to by a task; the SDK's answer is the Volume's own.
                content = files.read(paths[sha])
            if hashlib.sha256(content).hexdigest() != sha:
                raise ModalflowError(
                    f"{paths[sha]} on the Volume, which is {names.DAGS_FOLDER}/{path} of a DAG version, is "
                    "damaged; change that file, so that it is stored again"
                )
            yield path, content
    except FileNotFoundError as error:
        raise NotFoundError(
            f"DAG version {version.digest[:12]} is incomplete on the Volume: {error}"
        ) from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""What does ``dags/`` on the Volume hold, and is a change of it under way?

Files come into the tree one by one, or many at a time by ``dags sync``. The latter leaves a note beside them
before it touches the first, and removes it after the last:

    dags/.modalflow/sync.json       which version is wanted, which files to put and which to remove

From the moment when the note is there the wanted version is what counts, whatever the tree shows: one file
switches everything. The note lies within the tree so that the listing that everybody makes anyway shows it.
Whoever holds the lock of the tree completes a change that its author left behind.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from airflow_provider_modal import names
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.volume.files import Entry, VolumeFiles
from airflow_provider_modal.volume.paths import inner_path

log = logging.getLogger(__name__)

FILES_FOLDER = f"{names.INTERNAL_FOLDER}/dag-files"
"""Contents of files of DAG versions, by their sha256."""
CHANGE_PATH = f"{names.DAGS_FOLDER}/{names.INTERNAL_FOLDER}/sync.json"
FORMAT = 1
BATCH_FILES = 200
BATCH_BYTES = 64 * 1024 * 1024
"""What is uploaded at a time; also how often an upload can be interrupted or renewed."""

T = TypeVar("T")

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Tree:
    """A listing of ``dags/``.

    :param files: by path below it; only what belongs to DAG versions.
    :param changing: a change that ``dags sync`` began is not complete.
    """

    files: dict[str, Entry]
    changing: bool


@dataclass(frozen=True)
class Change:
    """What has to happen to the tree for a version to be there.

    :param digest: the version that counts from now on.
    :param put: sha256 of the content by path.
    :param remove: paths.
    """

    digest: str
    put: dict[str, str]
    remove: list[str]


def listed(files: VolumeFiles) -> Tree:
    """Return what ``dags/`` holds now."""
    prefix = f"{names.DAGS_FOLDER}/"
    found: dict[str, Entry] = {}
    changing = False
    for entry in files.list(names.DAGS_FOLDER, recursive=True):
        path = entry.path.removeprefix(prefix)
        changing = changing or entry.path == CHANGE_PATH
        # The listing of a file named "dags" is that file.
        if entry.is_dir or path == entry.path or not is_dag_tree_path(path):
            continue
        if not entry.is_file:
            log.warning("%s is not a regular file and no part of the DAG version", entry.path)
            continue
        found[inner_path(path)] = entry
    return Tree(found, changing)


def is_dag_tree_path(path: str) -> bool:
    """Return whether a path below ``dags/`` belongs to versions: not caches, not folders that are hidden."""
    *folders, name = path.split("/")
    hidden = any(folder.startswith(".") or folder == "__pycache__" for folder in folders)
    return not hidden and not name.endswith(".pyc")


def read_change(files: VolumeFiles) -> Change | None:
    """Return the change that is under way, None if there is none.

    :raises ModalflowError: the note of it is damaged.
    """
    try:
        data = json.loads(files.read(CHANGE_PATH))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}")
        change = Change(str(data["digest"]), dict(data["put"]), [inner_path(path) for path in data["remove"]])
        for path, sha256 in change.put.items():
            inner_path(path)
            if not _DIGEST.fullmatch(sha256):
                raise ValueError(f"{sha256!r} is not a digest")
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModalflowError(
            f"{CHANGE_PATH} on the Volume is damaged ({error}); remove it and start modalflow dags sync again"
        ) from None
    return change


def announce(files: VolumeFiles, change: Change) -> None:
    """Let ``change`` count from now on; its version and all contents must be stored."""
    note = {"format": FORMAT, "digest": change.digest, "put": change.put, "remove": change.remove}
    files.write(CHANGE_PATH, json.dumps(note, sort_keys=True).encode())


def complete(
    files: VolumeFiles,
    change: Change,
    local: Mapping[str, Path] | None = None,
    done: Callable[[int], None] = lambda number: None,
) -> None:
    """Make the tree what an announced change wants, and remove the note; may be repeated.

    Only for who holds the lock of the tree.

    :param local: local copies by sha256; what is missing here is read from the Volume.
    :param done: told how many files were dealt with, each time some were.
    """
    tree = {path: entry.size for path, entry in listed(files).files.items()}
    # A file can't be put where a folder is, nor below a file.
    blocked = [path for path in change.remove if _is_in_the_way(path, change.put)]
    for path in blocked:
        files.remove(f"{names.DAGS_FOLDER}/{path}")
        _remove_empty(files, path, change.put)
    known = local or {}
    for batch in _chunks(list(change.put.items()), BATCH_FILES):
        with tempfile.TemporaryDirectory(prefix="modalflow-") as folder:
            fetched = {sha256: Path(folder, sha256) for _, sha256 in batch if sha256 not in known}
            try:
                files.fetch({f"{FILES_FOLDER}/{sha256}": source for sha256, source in fetched.items()})
            except FileNotFoundError as error:
                raise ModalflowError(
                    f"the change of DAG files that {CHANGE_PATH} describes can't be completed: {error}; "
                    "start modalflow dags sync again"
                ) from None
            sources = {**known, **fetched}
            files.write_many({f"{names.DAGS_FOLDER}/{path}": sources[sha256] for path, sha256 in batch})
        done(len(batch))
    files.remove_many(
        f"{names.DAGS_FOLDER}/{path}" for path in change.remove if path in tree and path not in blocked
    )
    done(len(change.remove))
    files.remove(CHANGE_PATH)


def batches(sizes: Mapping[T, int]) -> Iterator[list[T]]:
    """Yield the keys in groups that are uploaded together; a large file is alone."""
    group: list[T] = []
    size = 0
    for key, length in sizes.items():
        if group and (len(group) >= BATCH_FILES or size + length > BATCH_BYTES):
            yield group
            group, size = [], 0
        group.append(key)
        size += length
    if group:
        yield group


def _is_in_the_way(path: str, put: Iterable[str]) -> bool:
    return any(other.startswith(f"{path}/") or path.startswith(f"{other}/") for other in put)


def _remove_empty(files: VolumeFiles, path: str, put: Mapping[str, str]) -> None:
    """Remove the folder in whose place a file comes, once nothing is in it."""
    for folder in (folder for folder in put if path.startswith(f"{folder}/")):
        below = files.list(f"{names.DAGS_FOLDER}/{folder}", recursive=True)
        if all(entry.is_dir for entry in below):
            files.remove(f"{names.DAGS_FOLDER}/{folder}", recursive=True)


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

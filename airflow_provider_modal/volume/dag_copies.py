"""How does a container, or any other host, get exactly the files of one DAG version onto its disk?

``materialise`` makes a folder per version. It appears complete or not at all and is never changed, so
processes of one host share it without asking each other.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airflow_provider_modal import airflow_settings, names
from airflow_provider_modal.errors import ModalflowError, NotFoundError
from airflow_provider_modal.volume.dag_tree import FILES_FOLDER
from airflow_provider_modal.volume.dag_versions import DagVersion, read_version
from airflow_provider_modal.volume.digests import sha256_of
from airflow_provider_modal.volume.files import VolumeFiles
from airflow_provider_modal.volume.paths import below

PLUGINS = "plugins"
"""Folder of the DAG tree that is Airflow's ``plugins_folder``."""
INCLUDE = "include"
"""Folder of the DAG tree with modules and other files for DAGs; on ``sys.path``, as the tree itself is."""
NO_DAGS = (PLUGINS, INCLUDE)
"""Folders at the top of the DAG tree in which nobody looks for DAGs."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_IGNORE = ".airflowignore"


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

    Processes and threads may call it at the same time: one works, the others wait for it.

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
        _fill(files, read_version(files, digest), partial)
        os.rename(partial, target)
    return target


def _fill(files: VolumeFiles, version: DagVersion, folder: Path) -> None:
    """Write the files of a version, each verified; what the mount lacks is read in one go."""
    places: dict[str, list[Path]] = defaultdict(list)
    paths: dict[str, str] = {}
    for path, sha256 in version.files.items():
        local = below(folder, path)
        local.parent.mkdir(parents=True, exist_ok=True)
        places[sha256].append(local)
        paths[sha256] = path
    remote = {}
    for sha256, locals_ in places.items():
        mounted = files.mounted_path(f"{FILES_FOLDER}/{sha256}")
        if mounted is not None:
            shutil.copyfile(mounted, locals_[0])
        # The mount may have been written to by a task; the SDK's answer is the Volume's own.
        if mounted is None or sha256_of(locals_[0]) != sha256:
            remote[f"{FILES_FOLDER}/{sha256}"] = locals_[0]
    try:
        files.fetch(remote, version.largest)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"DAG version {version.digest[:12]} is incomplete on the Volume: {error}"
        ) from None
    for stored, local in remote.items():
        sha256 = stored.rpartition("/")[2]
        if sha256_of(local) != sha256:
            raise ModalflowError(
                f"{stored} on the Volume, which is {names.DAGS_FOLDER}/{paths[sha256]} of a DAG version, is "
                "damaged; change that file, so that it is stored again"
            )
    for first, *others in places.values():
        for other in others:
            shutil.copyfile(first, other)
    _hide_what_is_no_dag(folder)


def _hide_what_is_no_dag(folder: Path) -> None:
    """Have Airflow not take modules of ``plugins/`` and ``include/`` for DAG files, whoever parses the tree.

    Each folder twice: Airflow reads the file's lines as glob patterns (3.x) or as regular expressions (2.x,
    ``[core] dag_ignore_file_syntax``); a line in the one language means nothing in the other. Not a file of
    its own within the folders, because there it would hide the plugins from Airflow as well.
    """
    hidden = [name for name in NO_DAGS if (folder / name).is_dir()]
    if not hidden:
        return
    ignore = folder / _IGNORE
    lines = [line for name in hidden for line in (f"/{name}/", f"^{name}/")]
    with ignore.open("ab") as file:
        file.write("\n".join(["", "# by airflow-provider-modal: no DAG files", *lines, ""]).encode())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""Which files of a folder on this computer belong into the environment's DAG tree, and under which path?

A folder with a ``dags/`` in it is a project: its ``dags/`` is the tree, and ``plugins/``, ``include/``,
``requirements.txt`` and ``.airflowignore`` beside it become part of the tree. Any other folder is the tree.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.volume.dag_copies import NO_DAGS

DAGS = "dags"
BESIDE = (*NO_DAGS, "requirements.txt", ".airflowignore")
"""What is taken from a project beside its ``dags/``."""
LONGEST_NAME = 255
MOST_FILES = 100_000
_CACHES = ("__pycache__", "node_modules")
_VISIBLE = (".airflowignore",)
_ENVIRONMENT_MARK = "pyvenv.cfg"
# Volume.listdir refuses paths that end in "*", and control characters mislead who reads a list.
_HOSTILE = re.compile(r"[\x00-\x1f\x7f\\*]")


@dataclass
class LocalTree:
    """What was found.

    :param files: by path in the DAG tree.
    :param skipped: why what was left out, by path on this computer; not what is always left out.
    :param project: whether the folder is a project.
    """

    files: dict[str, Path] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    project: bool = False


def is_left_out(path: str, exclude: Sequence[str] = ()) -> bool:
    """Return whether a path of the tree is one that is never taken from a folder, nor removed from the tree.

    That is: caches, what is hidden (``.git``, ``.env``), and what a pattern excludes.
    """
    parts = path.split("/")
    return (
        any(part in _CACHES or (part.startswith(".") and part not in _VISIBLE) for part in parts)
        or path.endswith((".pyc", ".pyo"))
        or any(_matches(path, pattern) for pattern in exclude)
    )


def scan(folder: Path, exclude: Sequence[str] = ()) -> LocalTree:
    """Return the files of a folder.

    Links are followed as long as they stay within ``folder``.

    :param exclude: patterns, against paths in the tree and against names; ``*`` also matches ``/``.
    :raises ConfigError: a file can't be part of a DAG tree.
    """
    found = LocalTree(project=(folder / DAGS).is_dir())
    root = folder.resolve()
    if not found.project:
        _walk(root, root, "", exclude, found, ())
        return found
    _walk(root, (root / DAGS), "", exclude, found, ())
    for name in BESIDE:
        place = root / name
        if place.is_dir():
            _walk(root, place, f"{name}/", exclude, found, ())
        elif place.exists() or place.is_symlink():
            _take(root, place, name, exclude, found, ())
    return found


def _walk(
    root: Path, place: Path, prefix: str, exclude: Sequence[str], found: LocalTree, above: tuple[Path, ...]
) -> None:
    real = _inside(root, place)
    if real in above:
        raise ConfigError(f"{place} leads back to a folder that it is in; exclude it: --exclude {place.name}")
    if (real / _ENVIRONMENT_MARK).exists():
        found.skipped[str(place)] = "a virtual environment"
        return
    for entry in _entries(place):
        _take(root, place / entry, prefix + entry, exclude, found, (*above, real))


def _take(
    root: Path,
    place: Path,
    path: str,
    exclude: Sequence[str],
    found: LocalTree,
    above: tuple[Path, ...],
) -> None:
    if is_left_out(path, exclude):
        return
    _require_name(place)
    real = _inside(root, place)
    kind = real.stat().st_mode
    if stat.S_ISDIR(kind):
        _walk(root, place, f"{path}/", exclude, found, above)
    elif not stat.S_ISREG(kind):
        found.skipped[str(place)] = "no regular file"
    else:
        former = found.files.setdefault(path, place)
        if former != place:
            raise ConfigError(
                f"both {former} and {place} would be {DAGS}/{path} of the environment; keep one of them"
            )
        if len(found.files) > MOST_FILES:
            raise ConfigError(
                f"{root} has more than {MOST_FILES} files; is it the right folder? What is no part of the "
                "DAGs can be left out: --exclude PATTERN"
            )


def _inside(root: Path, place: Path) -> Path:
    """Return what ``place`` is, links followed."""
    try:
        real = place.resolve(strict=True)
    except (OSError, RuntimeError):
        raise ConfigError(
            f"{place} is a link that leads nowhere; remove it, or leave it out: --exclude {place.name}"
        ) from None
    if real != root and root not in real.parents:
        raise ConfigError(
            f"{place} is a link that leads out of {root}, to {real}; copy what it leads to, or leave it out: "
            f"--exclude {place.name}"
        )
    return real


def _require_name(place: Path) -> None:
    name = place.name
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"the file name {os.fsencode(place)!r} is not UTF-8; rename the file") from None
    if len(encoded) > LONGEST_NAME or _HOSTILE.search(name):
        raise ConfigError(
            f"the file name {str(place)!r} is not allowed in a DAG tree: no control characters, '\\' or '*', "
            f"at most {LONGEST_NAME} bytes; rename the file, or leave it out: --exclude"
        )


def _entries(place: Path) -> Iterator[str]:
    try:
        names = sorted(os.listdir(place))
    except OSError as error:
        raise ConfigError(f"the folder {place} can't be read: {error.strerror}") from None
    yield from names


def _matches(path: str, pattern: str) -> bool:
    pattern = pattern.rstrip("/")
    folders = path.split("/")
    return any(
        fnmatch.fnmatchcase("/".join(folders[: depth + 1]), pattern)
        or fnmatch.fnmatchcase(folders[depth], pattern)
        for depth in range(len(folders))
    )

"""What a client's operation on a volume changes: upload, remove, copy and list, computed on a manifest
without touching a file."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence

from local_modal.volumes.manifest import (
    DIRECTORY,
    Changes,
    Entry,
    Manifest,
    directory,
    parent,
    parents,
    subtree,
)

NAME_BYTES = 255
PATH_BYTES = 3000
"""Linux's own limit is 4096 for the path in a container, which begins with the mount's, and on the host."""


class InvalidPath(ValueError):
    """A path that can't be used like this."""


class PathNotFound(Exception):
    """There is nothing at the path."""


class PathExists(Exception):
    """There is something at the path already, which isn't to be replaced."""


def normalize(path: str) -> str:
    """The manifest's form of a path: relative to the root, which is the empty string.

    Raises:
        InvalidPath: it leads out of the volume, has a NUL character, or is longer than any Linux file system
            allows, so that no container could mount the volume.
    """
    if "\0" in path:
        raise InvalidPath(f"Invalid path {path!r}: it contains a NUL character.")
    if ".." in path.split("/"):
        raise InvalidPath(f"Invalid path '{path}': '..' is not allowed.")
    name = posixpath.normpath("/" + path.lstrip("/")).lstrip("/")
    for text, most in [(name, PATH_BYTES), *((part, NAME_BYTES) for part in name.split("/"))]:
        if len(text) * 4 > most and len(os.fsencode(text)) > most:  # UTF-8 has up to 4 bytes a character
            raise InvalidPath(f"Invalid path '{path[:40]}...': '{text[:40]}...' is longer than {most} bytes.")
    return name


def look_up(manifest: Manifest, path: str) -> Entry | None:
    """The entry at a path, or None for the root.

    Raises:
        PathNotFound: nothing is there.
        InvalidPath: see `normalize`.
    """
    name = normalize(path)
    if not name:
        return None
    try:
        return manifest[name]
    except KeyError:
        raise PathNotFound(f"No such file or directory: '{path}'") from None


def list_entries(manifest: Manifest, path: str, recursive: bool) -> list[tuple[str, Entry]]:
    """What is in a directory, or all that is below it, sorted by path; for a file only itself. Paths are
    relative to the root.

    Raises:
        PathNotFound, InvalidPath: as for `look_up`.
    """
    name = normalize(path)
    entry = look_up(manifest, path)
    if entry is not None and entry.kind != DIRECTORY:
        return [(name, entry)]
    start = name + "/" if name else ""
    return sorted(
        (other, entry)
        for other, entry in manifest.items()
        if other.startswith(start) and (recursive or "/" not in other[len(start) :])
    )


def upload(manifest: Manifest, files: Mapping[str, Entry], overwrite: bool) -> Changes:
    """Files put by a client, all or none.

    Raises:
        PathExists: a file is there already and not to be overwritten, or a directory, which never is.
        InvalidPath: see `normalize`; or a file is where a directory would have to be.
    """
    puts: dict[str, Entry] = {}
    for path, entry in files.items():
        name = normalize(path)
        if not name:
            raise InvalidPath(f"Invalid path '{path}': a file needs a name.")
        existing = manifest.get(name)
        if existing is not None and existing.kind == DIRECTORY:
            raise PathExists(f"'{path}' is a directory: it can't be overwritten by a file.")
        if existing is not None and not overwrite:
            raise PathExists(f"'{path}' already exists.")
        for above in parents(name):
            if above in puts or (above in manifest and manifest[above].kind != DIRECTORY):
                raise InvalidPath(f"'{path}' can't be created: '/{above}' is not a directory.")
        puts[name] = entry
    return Changes(puts)


def remove(manifest: Manifest, path: str, recursive: bool) -> Changes:
    """A file, or with `recursive` a directory and all that is in it; the root only loses its contents.

    Raises:
        PathNotFound: nothing is there.
        InvalidPath: a directory, without `recursive`.
    """
    name = normalize(path)
    entry = look_up(manifest, path)
    if entry is not None and entry.kind != DIRECTORY:
        return Changes(deletes=[name])
    if not recursive:
        raise InvalidPath(f"'{path}' is a directory: it is only removed recursively.")
    deletes = [f"{name}/{below}" if name else below for below in subtree(manifest, name)]
    return Changes(deletes=[*deletes, name] if name else deletes)


def copy(
    manifest: Manifest, sources: Sequence[str], destination: str, recursive: bool, now_ns: int
) -> Changes:
    """As `cp [-r] SOURCES... DESTINATION` would.

    Raises:
        PathNotFound: a source, or the directory of the destination, isn't there.
        InvalidPath: a directory without `recursive` or into itself, several sources into something that isn't
            a directory.
    """
    target = normalize(destination)
    into_directory = not target or (target in manifest and manifest[target].kind == DIRECTORY)
    if not into_directory:
        if len(sources) != 1 or destination.endswith("/"):
            raise InvalidPath(f"'{destination}' is not a directory.")
        if parent(target):
            above = look_up(manifest, parent(target))
            if above is not None and above.kind != DIRECTORY:
                raise InvalidPath(f"'/{parent(target)}' is not a directory.")
    puts: dict[str, Entry] = {}
    for source in sources:
        name = normalize(source)
        entry = look_up(manifest, source)
        leaf = posixpath.basename(name)
        copied = "/".join(part for part in (target, leaf if into_directory else "") if part)
        if entry is not None and entry.kind != DIRECTORY:
            if copied == name:
                raise InvalidPath(f"'{source}' and '{destination}' are the same file.")
            if copied in manifest and manifest[copied].kind == DIRECTORY:
                raise InvalidPath(f"'/{copied}' is a directory: it can't be overwritten by a file.")
            puts[copied] = entry._replace(mtime_ns=now_ns)
            continue
        if not recursive:
            raise InvalidPath(f"'{source}' is a directory: it is only copied recursively.")
        if not into_directory and target in manifest:
            raise InvalidPath(f"'{destination}' is not a directory.")
        if not name or copied == name or copied.startswith(name + "/"):
            raise InvalidPath(f"'{source}' can't be copied into itself.")
        puts[copied] = directory(now_ns, entry.mode) if entry is not None else directory(now_ns)
        for below, child in subtree(manifest, name).items():
            puts[f"{copied}/{below}"] = child._replace(mtime_ns=now_ns)
    return Changes(puts)

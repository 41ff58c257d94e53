"""What a version of a volume consists of, and how two sets of changes to it come together.

A manifest maps paths (relative, POSIX, no leading slash) to entries; every parent directory has an entry of
its own, the root has none. Manifests are plain dicts that are never changed once published: whoever holds one
has a snapshot.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

FILE, DIRECTORY, SYMLINK = "f", "d", "l"
DEFAULT_DIRECTORY_MODE = 0o755


class Entry(NamedTuple):
    """One path of a volume. A named tuple, because a view of 10,000 files makes 10,000 of them."""

    kind: str
    mode: int
    """Permission bits only."""
    mtime_ns: int
    size: int = 0
    sha256: str = ""
    """Of the whole content, in hex; empty unless a file."""
    target: str = ""
    """Of a symbolic link."""

    def same_as(self, other: Entry | None) -> bool:
        """Whether replacing one by the other would change anything; a directory's mtime changes with its
        children, so it doesn't count."""
        if other is None or self.kind != other.kind:
            return False
        if self.kind == DIRECTORY:
            return self.mode == other.mode
        if self.kind == SYMLINK:
            return self.target == other.target
        return self == other


Manifest = Mapping[str, Entry]


@dataclass(frozen=True)
class Changes:
    """What takes one version to the next: entries to set, and paths to remove."""

    puts: Mapping[str, Entry] = field(default_factory=dict)
    deletes: Collection[str] = ()

    def __bool__(self) -> bool:
        return bool(self.puts) or bool(self.deletes)

    def below(self, prefix: str) -> Changes:
        """The same changes for a volume of which `prefix` is the directory that they were made in."""
        if not prefix:
            return self
        puts = {f"{prefix}/{path}": entry for path, entry in self.puts.items()}
        return Changes(puts, [f"{prefix}/{path}" for path in self.deletes])


def directory(mtime_ns: int, mode: int = DEFAULT_DIRECTORY_MODE) -> Entry:
    """The entry of a directory that comes into being because something is put below it."""
    return Entry(DIRECTORY, mode, mtime_ns)


def file(sha256: str, size: int, mode: int, mtime_ns: int) -> Entry:
    """The entry of a regular file."""
    return Entry(FILE, stat.S_IMODE(mode), mtime_ns, size, sha256)


def parents(path: str) -> Iterator[str]:
    """The directories that `path` is in, outermost first, without the root."""
    end = path.find("/")
    while end != -1:
        yield path[:end]
        end = path.find("/", end + 1)


def parent(path: str) -> str:
    """The directory that `path` is in; the empty string for the root."""
    return path.rpartition("/")[0]


def subtree(manifest: Manifest, prefix: str) -> dict[str, Entry]:
    """What is below the directory `prefix`, with paths relative to it; everything for the empty prefix."""
    if not prefix:
        return dict(manifest)
    start = prefix + "/"
    return {path[len(start) :]: entry for path, entry in manifest.items() if path.startswith(start)}


def apply(base: Manifest, changes: Changes) -> dict[str, Entry]:
    """A new manifest: `base` with `changes` on top, where the later writer wins path by path.

    `base` need not be what the changes were computed from. What somebody else has put meanwhile into a
    directory that is to be removed stays, with the directory; a file put where a directory has appeared
    replaces it, and so the other way round.
    """
    result = dict(base)
    _delete(result, changes.deletes)
    for path in sorted(changes.puts):  # a directory before what is in it
        entry = changes.puts[path]
        for directory_path in parents(path):
            existing = result.get(directory_path)
            if existing is None or existing.kind != DIRECTORY:
                result[directory_path] = directory(entry.mtime_ns)
        existing = result.get(path)
        if existing is not None and existing.kind == DIRECTORY and entry.kind != DIRECTORY:
            for child in [other for other in result if other.startswith(path + "/")]:
                del result[child]
        result[path] = entry
    return result


def _delete(result: dict[str, Entry], deletes: Collection[str]) -> None:
    directories = any(path in result and result[path].kind == DIRECTORY for path in deletes)
    children = Counter(parent(path) for path in result) if directories else Counter()
    for path in sorted(deletes, reverse=True):  # what is in a directory before it
        entry = result.get(path)
        if entry is None or (entry.kind == DIRECTORY and children[path] > 0):
            continue
        del result[path]
        children[parent(path)] -= 1


def difference(old: Manifest, new: Manifest) -> Changes:
    """The changes that turn `old` into `new`."""
    if old is new:
        return Changes()
    puts = {}
    for path, entry in new.items():
        before = old.get(path)
        if before is not entry and not entry.same_as(before):
            puts[path] = entry
    return Changes(puts, [path for path in old if path not in new])


def blobs_of(entries: Iterable[Entry]) -> set[str]:
    """The contents that these entries need."""
    return {entry.sha256 for entry in entries if entry.kind == FILE}

"""What an overlay's upper directory says about the file tree that the overlay shows: read from outside, which
is allowed at any time; only writing isn't.

The kernel marks a removed file by a character device 0:0, a directory that hides the one below it by an
attribute "opaque", and one that has been renamed by an attribute "redirect" with the path that it had below
(`Documentation/filesystems/overlayfs.rst`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from local_modal.volumes.beneath import Beneath
from local_modal.volumes.manifest import DIRECTORY, Entry, Manifest, directory, parents

Read = Callable[[Beneath, str, os.stat_result], Entry | None]
"""The entry of what is at a path with a status; None if it can't be kept."""


@dataclass
class Delta:
    """How a file tree differs from the manifest below it: entries to set, and paths that aren't there."""

    puts: dict[str, Entry] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    def get(self, lower: Manifest, path: str) -> Entry | None:
        """What the tree has at `path`."""
        entry = self.puts.get(path)
        if entry is not None or path in self.gone:
            return entry
        return lower.get(path)

    def on(self, lower: Manifest) -> dict[str, Entry]:
        """The whole tree."""
        whole = {path: entry for path, entry in lower.items() if path not in self.gone}
        whole.update(self.puts)
        return whole

    def paths(self) -> set[str]:
        """Every path at which the tree may differ."""
        return self.puts.keys() | self.gone


def look(upper: Beneath, lower: Manifest, attributes: str, read: Read) -> Delta:
    """The tree that an overlay shows, as its difference from what is in its lower directory.

    Args:
        upper: the directory.
        lower: what the lower directory contains.
        attributes: the namespace that the overlay was mounted with, "trusted" or "user".
        read: called for everything but directories and marks.
    """
    delta = Delta()
    covered: set[str] = set()
    grafted = False

    def cover(path: str) -> None:
        covered.add(path)
        if grafted:
            for hidden in [other for other in delta.puts if other == path or other.startswith(path + "/")]:
                del delta.puts[hidden]

    pending: list[tuple[str, str | None]] = [("", "")]
    while pending:
        above, origin = pending.pop()
        for name, status in _children(upper, above):
            path = _join(above, name)
            below = None if origin is None else _join(origin, name)
            if below is not None and (below not in lower or lower[below].kind != DIRECTORY):
                below = None
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                cover(path)
            elif stat.S_ISDIR(status.st_mode):
                source = _origin(upper, path, attributes, origin, below)
                if source != below:
                    cover(path)
                    if source is not None:
                        grafted = True
                        prefix = source + "/"
                        for other, entry in lower.items():
                            if other.startswith(prefix):
                                delta.puts[f"{path}/{other[len(prefix) :]}"] = entry
                delta.puts[path] = directory(status.st_mtime_ns, stat.S_IMODE(status.st_mode))
                pending.append((path, source))
            else:
                if below is not None:
                    cover(path)
                entry_read = read(upper, path, status)
                if entry_read is not None:
                    delta.puts[path] = entry_read
                else:
                    covered.add(path)
    delta.gone = {path for path in _at_or_below(lower, covered) if path not in delta.puts}
    return delta


def _children(upper: Beneath, path: str) -> list[tuple[str, os.stat_result]]:
    try:
        return upper.children(path)
    except (FileNotFoundError, NotADirectoryError):
        if not path:
            raise
        return []  # removed while we look


def _origin(upper: Beneath, path: str, attributes: str, origin: str | None, below: str | None) -> str | None:
    """The directory of the lower tree that the one at `path` continues."""
    if upper.attribute(path, f"{attributes}.overlay.opaque") == "y":
        return None
    redirect = upper.attribute(path, f"{attributes}.overlay.redirect")
    if redirect.startswith("/"):
        return redirect.strip("/")
    if redirect and origin is not None:
        return _join(origin, redirect)
    return below


def _at_or_below(lower: Manifest, covered: set[str]) -> Iterator[str]:
    if not any(path in lower and lower[path].kind == DIRECTORY for path in covered):
        yield from (path for path in covered if path in lower)
        return
    for path in lower:
        if path in covered or not covered.isdisjoint(parents(path)):
            yield path


def _join(above: str, name: str) -> str:
    return f"{above}/{name}" if above else name

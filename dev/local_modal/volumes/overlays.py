"""A view that is an overlay: below, a tree that all views of a version share; above, what the container
writes.

Opening is independent of the volume's size once the tree is there, and a commit looks at what the container
has written only. A mounted overlay's own directories must not be changed from outside, so a reload writes
through the container's mount, at `/proc/<pid>/root`: the container gets what others have committed as if it
had written it itself. That mount is writable, so a volume that is mounted read-only is a copy instead.

What a container notices of the overlay, none of it kinder than a volume of Modal's: where redirects aren't
possible (`TRUSTED` below), renaming a directory that it hasn't made itself fails with EXDEV, as between file
systems; a file opened for reading doesn't see what is written later through another descriptor if that was
the first write; and `st_nlink` may be greater than 1.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from local_modal.isolation import bare_spec, inspect_interpreter, try_out
from local_modal.volumes.beneath import Beneath
from local_modal.volumes.manifest import DIRECTORY, Changes, Entry, Manifest, difference, subtree
from local_modal.volumes.store import Head, VolumeStore
from local_modal.volumes.trees import Tree, Trees
from local_modal.volumes.upper import Delta, look
from local_modal.volumes.views import BoundView, ContainerGone, Layers, View, filesystem_time, remove_tree

OPEN_ATTEMPTS = 3
UNMOUNTABLE = frozenset(",:\\")
"""Characters with a meaning in mount options."""


@dataclass(frozen=True)
class Kind:
    """How overlays are mounted here."""

    attributes: str
    """The namespace of the kernel's marks."""
    options: str
    remark: str = ""
    """What containers will notice."""


TRUSTED = Kind("trusted", "redirect_dir=on")
USER = Kind("user", "userxattr", "renaming a directory that a container hasn't made itself fails with EXDEV")
"""In a user namespace; directories can't be redirected then."""


async def detect(python: str, directory: Path) -> Kind | str:
    """The best kind of overlay that works in a container with its files in `directory`, by trying; if none
    does, why not."""
    failures = []
    for kind in (TRUSTED, USER) if os.getuid() == 0 else (USER,):
        failure = await _try(python, directory, kind)
        if not failure:
            return kind
        failures.append(f"{kind.options}: {failure}")
    return "; ".join(failures)


class OverlayView(View):
    """A mount of the container's, made by its launcher as `bound.layers` says.

    Args:
        trees: where the lower directory comes from.
        kind: what `detect` has found.
        bound: its layers are filled in by `open`.
        directory: for the upper directory; must not exist.
    """

    def __init__(
        self,
        store: VolumeStore,
        trees: Trees,
        kind: Kind,
        bound: BoundView,
        directory: Path,
        sub_path: str = "",
    ) -> None:
        super().__init__(store, bound, sub_path)
        self._trees = trees
        self._kind = kind
        self._directory = Path(os.path.realpath(directory))
        self._upper = str(self._directory / "upper")
        self._tree: Tree | None = None
        self._lower: Manifest = {}
        self._base = Delta()
        """What the view holds as far as is known, relative to `_lower`."""

    def open(self) -> None:  # noqa: D102 - as promised by View
        for name in ("upper", "work", "mounted"):
            os.makedirs(self._directory / name, mode=0o755)
        tree = self._tree = self._acquire()
        self._lower = subtree(tree.head.manifest, self.sub_path) if self.sub_path else tree.head.manifest
        lower = f"{tree.path}/{self.sub_path}" if self.sub_path else tree.path
        layers = Layers(lower, self._upper, str(self._directory / "work"), self._kind.options)
        self.bound = replace(self.bound, host_path=self._directory / "mounted", layers=layers)

    def close(self) -> None:  # noqa: D102 - as promised by View
        if self._tree is not None:
            self._trees.release(self._tree)
            self._tree = None
        remove_tree(self._directory)

    def _acquire(self) -> Tree:
        for _ in range(OPEN_ATTEMPTS):
            self._create_sub_path(filesystem_time(self._upper))
            tree = self._trees.acquire(self.bound.volume_id)
            if not self.sub_path or self.sub_path in tree.head.manifest:
                entry = tree.head.manifest.get(self.sub_path)
                if entry is None or entry.kind == DIRECTORY:
                    return tree
            self._trees.release(tree)  # somebody has removed the directory meanwhile
        raise OSError(f"/{self.sub_path} of {self.bound.volume_id} is removed again and again")

    def _changes(self, always_read: set[str]) -> Changes:
        now = filesystem_time(self._upper)
        self._forget(always_read)
        with Beneath(self._upper) as upper:
            found = look(upper, self._lower, self._kind.attributes, self._read)
        self._forget_recent(now)
        self._forget(always_read)  # may have been written to since, without a trace
        puts, deletes = {}, []
        for path in found.paths() | self._base.paths():
            before, after = self._base.get(self._lower, path), found.get(self._lower, path)
            if after is None:
                if before is not None:
                    deletes.append(path)
                    self._seen.pop(path, None)
            elif not after.same_as(before):
                puts[path] = after
        return Changes(puts, deletes)

    def _committed(self, changes: Changes) -> None:
        self._base.puts.update(changes.puts)
        self._base.gone.difference_update(changes.puts)
        for path in changes.deletes:
            self._base.puts.pop(path, None)
            if path in self._lower:
                self._base.gone.add(path)

    def _shown(self, path: str, entry: Entry | None) -> None:
        self._committed(Changes(deletes=[path]) if entry is None else Changes({path: entry}))

    def _show(self, head: Head, pids: Iterable[int]) -> None:
        target = subtree(head.manifest, self.sub_path)
        changes = difference(self._base.on(self._lower), target)
        if changes:
            with self._mounted(pids) as mounted, Beneath(self._upper) as upper:
                self._write_all(mounted, changes, backing=upper)
            self._forget_recent(filesystem_time(self._upper))
            relative = difference(self._lower, target)
            self._base = Delta(dict(relative.puts), set(relative.deletes))

    def _mounted(self, pids: Iterable[int]) -> Beneath:
        """The container's mount, writable."""
        plain = os.stat(self._upper).st_dev
        for pid in pids:
            try:
                mounted = Beneath(f"/proc/{pid}/root", self.bound.service_path)
            except OSError:
                continue  # it has ended, or hasn't entered the container yet
            if mounted.status().st_dev != plain:  # else the process hasn't entered the container yet
                return mounted
            mounted.close()
        raise ContainerGone(f"No process of the container has volume {self.bound.volume_id} any more.")


_trials = itertools.count()
_EXERCISE = """
import os
os.unlink("/__modal/trial/file")
os.rmdir("/__modal/trial/replaced")
os.mkdir("/__modal/trial/replaced")
try:
    os.rename("/__modal/trial/directory", "/__modal/trial/renamed")
except OSError:
    pass
"""


async def _try(python: str, directory: Path, kind: Kind) -> str:
    """Why a container can't mount it or we can't read its marks; the empty string if both work."""
    trial = Path(os.path.realpath(directory)) / f"trial-{next(_trials)}"
    layers = {name: str(trial / name) for name in ("lower", "upper", "work", "target")}
    for name in (*layers, "scratch", "lower/replaced", "lower/directory"):
        (trial / name).mkdir(parents=True)
    (trial / "lower" / "file").touch()
    spec = bare_spec(
        await inspect_interpreter(python),
        trial / "scratch",
        [{"target": "/__modal/trial", "source": layers["target"]}],
        overlays=[{**layers, "options": kind.options}],
        module="timeit",  # runs any statement
        argv=["-n1", "-r1", *_EXERCISE.strip().splitlines()],
    )
    try:
        failure = await try_out(python, spec)
        if not failure:
            os.getxattr(f"{layers['upper']}/replaced", f"{kind.attributes}.overlay.opaque")
            if kind is TRUSTED:
                os.getxattr(f"{layers['upper']}/renamed", f"{kind.attributes}.overlay.redirect")
    except OSError as error:
        return str(error)
    finally:
        remove_tree(trial)
    return failure

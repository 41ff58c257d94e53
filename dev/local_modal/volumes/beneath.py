"""Files below a directory that somebody else writes to at the same time, as a container does to its view.

Every component of a path is opened relative to the directory above it, and a symbolic link is never followed.
A link that appears where a directory or a file has just been seen would else lead the server out of the
view: an absolute one to the server's own files, though the path begins with `/proc/<pid>/root`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

_TRAVERSE = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Opening a pipe must not wait for somebody who writes to it."""
_READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LONGER_A_FILE = (errno.ELOOP, errno.ENXIO)
"""A symbolic link, a socket."""


class Beneath:
    """The directory `root` and what is below it, by paths relative to it; links in `root` itself are
    followed. To be closed; not for use by several threads at a time.

    Every method raises FileNotFoundError or NotADirectoryError if a directory on the way isn't there, or is
    none: a symbolic link is none.

    Args:
        root: a directory.
        inside: where in it the paths begin; no link is followed on the way there either.
    """

    def __init__(self, root: str, inside: str = "") -> None:
        self._root = os.open(root, _TRAVERSE)
        self._path, self._descriptor = "", self._root
        """The directory that was used last: most paths that follow are in the same one."""
        try:
            if inside.strip("/"):
                below = self._descend(inside.strip("/"))
                os.close(self._root)
                self._root = self._descriptor = below
        except BaseException:
            os.close(self._root)
            raise

    def __enter__(self) -> Beneath:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptors back."""
        self._leave()
        os.close(self._root)

    def at(self, path: str) -> tuple[int, str]:
        """The descriptor of the directory that `path` is in, valid until the next call, and the name there:
        for functions that take `dir_fd`."""
        above, _, name = path.rpartition("/")
        _check(name)
        return self._directory(above), name

    def status(self, path: str = "") -> os.stat_result:
        """What is at `path`; of a link, the link's own."""
        if not path:
            return os.fstat(self._root)
        descriptor, name = self.at(path)
        return os.stat(name, dir_fd=descriptor, follow_symlinks=False)

    def children(self, path: str) -> list[tuple[str, os.stat_result]]:
        """The names in a directory with their status; what vanishes meanwhile is left out."""
        found = []
        with self._opened(path) as descriptor, os.scandir(descriptor) as entries:
            for entry in entries:
                try:
                    found.append((entry.name, entry.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue
        return found

    def attribute(self, path: str, name: str) -> str:
        """An extended attribute of a directory; the empty string if it has none."""
        try:
            with self._opened(path) as descriptor:
                return os.fsdecode(os.getxattr(descriptor, name))
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ENOENT, errno.ENOTDIR):
                return ""
            raise

    def open_file(self, path: str) -> tuple[int, os.stat_result] | None:
        """A descriptor to read a regular file, for the caller to close, and its status; None if there is
        something else by now."""
        descriptor, name = self.at(path)
        try:
            opened = os.open(name, _READ, dir_fd=descriptor)
        except OSError as error:
            if error.errno in _NO_LONGER_A_FILE:
                return None
            raise
        status = os.fstat(opened)
        if stat.S_ISREG(status.st_mode):
            return opened, status
        os.close(opened)
        return None

    def link_target(self, path: str) -> str | None:
        """Where a symbolic link leads; None if there is something else by now."""
        descriptor, name = self.at(path)
        try:
            return os.readlink(name, dir_fd=descriptor)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    def make_directory(self, path: str) -> None:
        """Make a directory, for the owner only, unless there is one.

        Raises:
            FileExistsError: there is something else.
        """
        descriptor, name = self.at(path)
        try:
            os.mkdir(name, 0o700, dir_fd=descriptor)
        except FileExistsError:
            if not stat.S_ISDIR(self.status(path).st_mode):
                raise

    def make_link(self, path: str, target: str) -> None:
        """Make a symbolic link where nothing is."""
        descriptor, name = self.at(path)
        os.symlink(target, name, dir_fd=descriptor)

    def set_mode(self, path: str, mode: int) -> None:
        """Change the permissions of a directory."""
        descriptor = self._directory(path)
        if hasattr(os, "O_PATH"):  # with which fchmod isn't allowed
            os.chmod(f"/proc/self/fd/{descriptor}", mode)
        else:
            os.fchmod(descriptor, mode)

    def remove(self, path: str) -> None:
        """Remove a file, a link or an empty directory.

        Raises:
            OSError: a directory isn't empty.
        """
        status = self.status(path)
        descriptor, name = self.at(path)
        if stat.S_ISDIR(status.st_mode):
            os.rmdir(name, dir_fd=descriptor)
        else:
            os.unlink(name, dir_fd=descriptor)

    def remove_all(self, path: str) -> None:
        """Remove whatever is there, with all that is below it, also where permissions forbid it."""
        found = [path]
        if stat.S_ISDIR(self.status(path).st_mode):
            pending = [path]
            while pending:
                above = pending.pop()
                self.set_mode(above, 0o700)
                for name, status in self.children(above):
                    found.append(f"{above}/{name}")
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(found[-1])
        for each in reversed(found):  # what is in a directory before it
            self.remove(each)

    @contextmanager
    def _opened(self, path: str) -> Iterator[int]:
        descriptor = os.open(".", _READ_DIRECTORY, dir_fd=self._directory(path))
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _directory(self, path: str) -> int:
        if path != self._path:
            self._leave()
            if path:
                self._descriptor = self._descend(path)
                self._path = path
        return self._descriptor

    def _leave(self) -> None:
        if self._path:
            os.close(self._descriptor)
        self._path, self._descriptor = "", self._root

    def _descend(self, path: str) -> int:
        above = self._root
        for part in path.split("/"):
            try:
                _check(part)
                below = os.open(part, _TRAVERSE | os.O_NOFOLLOW, dir_fd=above)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), part) from None
                raise
            finally:
                if above != self._root:
                    os.close(above)
            above = below
        return above


def _check(name: str) -> None:
    if name in ("", ".", ".."):
        raise ValueError(f"Not a name in a directory: {name!r}")

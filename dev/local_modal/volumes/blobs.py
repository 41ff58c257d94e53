"""File contents by their sha256: written once, never changed, shared by all versions and volumes that contain
them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

CHUNK = 1 << 20
SMALL = 1 << 20
"""Contents up to this many bytes are handled in memory."""
BLOCK_SIZE = 8 * 1024 * 1024
"""Volumes of version 2 are uploaded, and all are downloaded, in pieces of this size
(`modal/_utils/blob_utils.py`)."""
_FICLONE = 0x40049409
_SHA256 = re.compile(r"[0-9a-f]{64}")


class MissingBlob(Exception):
    """A content that is to be used has not been uploaded."""


class BlobStore:
    """A directory of contents; every method may be called from any thread.

    A content appears by renaming a complete temporary file, so a crash leaves nothing half written under its
    final name.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / "tmp"
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._names = itertools.count()
        self._reflinks = True
        self._linking = threading.Lock()
        self._superseded: dict[str, float] = {}
        """Contents that a version no longer has, and since when, by the monotonic clock."""
        self._superseding = threading.Lock()

    def path(self, sha256: str) -> Path:
        """Where a content is; its bytes never change.

        Raises:
            ValueError: not a sha256 in lower-case hex (a path could be smuggled in otherwise).
        """
        return Path(self._location(sha256))

    def has(self, sha256: str) -> bool:
        """Whether the content is here; if so it isn't removed as superseded any more."""
        with self._superseding:
            self._superseded.pop(sha256, None)
            return os.path.exists(self._location(sha256))

    def size(self, sha256: str) -> int:
        """Its length in bytes.

        Raises:
            MissingBlob: it isn't here.
        """
        try:
            return os.stat(self._location(sha256)).st_size
        except FileNotFoundError:
            raise MissingBlob(sha256) from None

    def read(self, sha256: str, start: int, length: int) -> bytes:
        """A piece of a content, shorter than `length` only at its end.

        Raises:
            MissingBlob: it isn't here.
        """
        try:
            with open(self._location(sha256), "rb") as stream:
                stream.seek(start)
                return stream.read(length)
        except FileNotFoundError:
            raise MissingBlob(sha256) from None

    def put_bytes(self, data: bytes) -> str:
        """Keep `data` and return its sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.has(sha256):
            writer = self.writer()
            writer.write(data)
            writer.finish()
        return sha256

    def put_file(self, source: str | Path | int) -> tuple[str, int]:
        """Keep the content of a file that others may be writing to; returns sha256 and size of what was read.
        A descriptor is closed.

        Raises:
            OSError: the file can't be read, for example because it is gone.
        """
        with open(source, "rb", buffering=0) as stream:
            first = stream.read(SMALL + 1) or b""
            if len(first) <= SMALL:
                return self.put_bytes(first), len(first)
            writer = self.writer()
            try:
                writer.write(first)
                while chunk := stream.read(CHUNK):
                    writer.write(chunk)
            except BaseException:
                writer.discard()
                raise
        return writer.finish(), writer.size

    def writer(self) -> BlobWriter:
        """For a content that arrives in pieces."""
        return BlobWriter(self._temporary / f"{os.getpid()}-{next(self._names)}", self._location, self.has)

    def assemble(self, blocks: Sequence[str], size: int) -> str:
        """The file of `size` bytes whose 8 MiB blocks these are, each without its trailing zero bytes;
        returns its sha256.

        Raises:
            MissingBlob: a block has not been uploaded.
            ValueError: the blocks don't fit the size.
        """
        if len(blocks) != -(-size // BLOCK_SIZE):
            raise ValueError(f"{len(blocks)} blocks can't make a file of {size} bytes")
        if len(blocks) == 1 and self.has(blocks[0]) and self.size(blocks[0]) == size:
            return blocks[0]
        writer = self.writer()
        try:
            for index, block in enumerate(blocks):
                expected = min(BLOCK_SIZE, size - index * BLOCK_SIZE)
                padding = expected - self.size(block)
                if padding < 0:
                    raise ValueError(f"Block {index} is longer than the {expected} bytes that belong there")
                with open(self._location(block), "rb") as stream:
                    while chunk := stream.read(CHUNK):
                        writer.write(chunk)
                while padding > 0:
                    writer.write(bytes(min(CHUNK, padding)))
                    padding -= CHUNK
        except BaseException:
            writer.discard()
            raise
        return writer.finish()

    def copy_to(
        self, sha256: str, destination: str, mode: int, mtime_ns: int, dir_fd: int | None = None
    ) -> os.stat_result:
        """Make `destination`, which must not exist, an independent file of this content; shares blocks where
        the file system can. A failure leaves nothing there.

        Raises:
            MissingBlob: the content isn't here.
        """
        try:
            source = os.open(self._location(sha256), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise MissingBlob(sha256) from None
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            target = os.open(destination, flags, 0o600, dir_fd=dir_fd)
            try:
                if not self._clone(source, target):
                    _copy_all(source, target)
                # After the content: open() would apply our umask, and write() clears set-uid bits.
                os.fchmod(target, mode)
                os.utime(target, ns=(mtime_ns, mtime_ns))
                return os.fstat(target)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(destination, dir_fd=dir_fd)
                raise
            finally:
                os.close(target)
        finally:
            os.close(source)

    def link_to(self, sha256: str, destination: str, mode: int, mtime_ns: int) -> bool:
        """Make `destination`, which must not exist, another name of this content's own file, if that can have
        this mode and time: they belong to the file, so only the first who asks can. Nobody may ever write to
        `destination`.

        Raises:
            MissingBlob: the content isn't here.
        """
        location = self._location(sha256)
        if mode & 0o7400 != 0o400:  # we must be able to read it; special bits are better not shared
            return False
        with self._linking:
            try:
                status = os.stat(location)
                if (stat.S_IMODE(status.st_mode), status.st_mtime_ns) != (mode, mtime_ns):
                    if status.st_nlink > 1:
                        return False
                    os.chmod(location, mode)
                    os.utime(location, ns=(mtime_ns, mtime_ns))
            except FileNotFoundError:
                raise MissingBlob(sha256) from None
            try:
                os.link(location, destination)
            except OSError as error:
                if error.errno not in (errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP):
                    raise
                return False
        return True

    def collect_garbage(self, needed: Collection[str], older_than: float) -> int:
        """Remove contents not in `needed` that are older than so many seconds (an upload may be under way);
        returns how many."""
        oldest_kept = time.time() - older_than
        removed = 0
        for left_over in os.scandir(self._temporary):
            os.unlink(left_over.path)
        for directory in os.scandir(self._root):
            if len(directory.name) != 2:
                continue
            for entry in os.scandir(directory.path):
                if directory.name + entry.name not in needed and entry.stat().st_mtime < oldest_kept:
                    os.unlink(entry.path)
                    removed += 1
        return removed

    @property
    def has_superseded(self) -> bool:
        """Whether there may be anything to remove."""
        return bool(self._superseded)

    def supersede(self, sha256s: Iterable[str]) -> None:
        """Note that a version of a volume no longer has these contents; others may."""
        with self._superseding:
            self._superseded.update(dict.fromkeys(sha256s, time.monotonic()))

    def remove_superseded(self, current: Collection[str], used: Collection[str], after: float) -> int:
        """Remove the superseded contents that nobody needs; returns how many.

        Args:
            current: contents of current versions.
            used: contents that may be needed for a while.
            after: how many seconds a content is kept because somebody may be reading it.
        """
        latest = time.monotonic() - after
        removed = 0
        for sha256, since in list(self._superseded.items()):
            if since > latest or (sha256 in used and sha256 not in current):
                continue
            with self._superseding:  # between has() and its use, the content must not go
                if self._superseded.get(sha256) == since:
                    del self._superseded[sha256]
                    if sha256 not in current:
                        os.unlink(self._location(sha256))
                        removed += 1
        return removed

    def _clone(self, source: int, target: int) -> bool:
        if not self._reflinks:
            return False
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS):
                self._reflinks = False
                return False
            raise
        return True

    def _location(self, sha256: str) -> str:
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"Not a sha256: {sha256!r}")
        return f"{self._root}/{sha256[:2]}/{sha256[2:]}"


class BlobWriter:
    """One content on its way into the store; `finish` or `discard` it."""

    def __init__(
        self, temporary: Path, location: Callable[[str], str], arrived: Callable[[str], object]
    ) -> None:
        self._temporary = temporary
        self._location = location
        self._arrived = arrived
        self._hash = hashlib.sha256()
        self._stream = open(temporary, "xb", buffering=0)  # noqa: SIM115 - closed by finish or discard
        self.size = 0

    @property
    def sha256(self) -> str:
        """Of what has been written so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append."""
        self._hash.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[self._stream.write(view) :]

    def finish(self) -> str:
        """Put the content into its place and return its sha256."""
        self._stream.close()
        os.chmod(self._temporary, 0o444)
        location = self._location(self.sha256)
        self._arrived(self.sha256)  # before it is there, lest it be removed as superseded right then
        try:
            os.rename(self._temporary, location)
        except FileNotFoundError:  # the first content in this directory
            os.makedirs(os.path.dirname(location), exist_ok=True)
            os.rename(self._temporary, location)
        return self.sha256

    def discard(self) -> None:
        """Forget it."""
        self._stream.close()
        self._temporary.unlink(missing_ok=True)


def _copy_all(source: int, target: int) -> None:
    while data := os.read(source, SMALL):
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]

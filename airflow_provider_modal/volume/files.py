"""How is a file of the environment's Volume read and written so that everybody sees the same?

Through the SDK, not through the mount: what the SDK wrote is visible to all on return and what it reads is
the latest, in every container and outside Modal; no commit and no reload is involved, which fail or publish
half-written files while a task works on the mount. Files of ours are immutable and uniquely named, or one
small pointer that is replaced whole. The mount serves as a cache of immutable files (``read_immutable``, and
``immutable=True`` where a file may be large).

All paths are relative to the Volume's root, with ``/`` and without a leading one.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar

from airflow_provider_modal.errors import NotFoundError, UnreachableError
from airflow_provider_modal.modal_errors import passing_errors, translated
from airflow_provider_modal.volume.paths import below, inner_path
from airflow_provider_modal.volume.streams import Chunks, OwnLoop

if TYPE_CHECKING:
    import modal

    from airflow_provider_modal.names import ResourceNames

log = logging.getLogger(__name__)

T = TypeVar("T")

DEADLINE = 30.0
"""Seconds for one operation with its repetitions; large uploads get more, by their size."""
SLOWEST_UPLOAD = 1024 * 1024
"""Bytes per second below which an upload counts as hung."""
SLOWEST_DOWNLOAD = 1024 * 1024
"""The same for the blocks of a stream, which arrive side by side."""
PARALLEL_READS = 16
PARALLEL_REMOVALS = 8
FILES_PER_UPLOAD = 1000
"""Files that go into one request; an assumption, as Modal names no limit."""
CHUNK_BYTES = 1024 * 1024
_DELAYS = (0.2, 1.0, 3.0)

Source: TypeAlias = "bytes | Path | IO[bytes]"
"""What a file is written from: its content, a local file, or an open one, from where it stands to its end."""


@dataclass(frozen=True)
class Entry:
    """One entry of a listing.

    :param path: relative to the Volume's root.
    :param size: bytes.
    :param mtime: seconds since the epoch; Modal's listings have whole seconds.
    :param is_file: a regular file; False for folders and for links, which the SDK does not follow.
    """

    path: str
    size: int
    mtime: float
    is_dir: bool
    is_file: bool = True


class VolumeFiles:
    """Files of one Volume.

    Safe to share between threads. Every operation repeats what failed in passing, with a bound, and may raise
    :class:`UnreachableError` when Modal does not answer within the deadline, :class:`ConfigError` when it
    refuses the token and :class:`NotFoundError` when the Volume itself does not exist.

    :param volume: a handle; may be lazy.
    :param mount: where this container has the Volume mounted, if it has.
    :param deadline: seconds for one operation.
    """

    def __init__(
        self, volume: modal.Volume, mount: Path | None = None, *, deadline: float = DEADLINE
    ) -> None:
        self._volume = volume
        self._mount = mount
        self._deadline = deadline
        self._found = False

    @classmethod
    def open(
        cls, resources: ResourceNames, mount: Path | None = None, place: Mapping[str, Any] | None = None
    ) -> VolumeFiles:
        """Return the files of an environment's Volume; makes no call yet.

        :param place: more arguments for the SDK's look-up: ``client``, ``environment_name``.
        """
        import modal

        return cls(modal.Volume.from_name(resources.volume, **(place or {})), mount)

    def read(self, path: str) -> bytes:
        """Return a file's latest content.

        :raises FileNotFoundError: there is no such file.
        """
        return self.read_many([path])[path]

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the latest content of several files, read side by side.

        :raises FileNotFoundError: one of them does not exist.
        """
        wanted = [inner_path(path) for path in paths]

        async def read_all() -> dict[str, bytes]:
            slots = asyncio.Semaphore(PARALLEL_READS)

            async def read_one(path: str) -> bytes:
                async with slots:
                    return await self._attempt(f"read {path} of the Volume", lambda: self._read(path))

            return dict(zip(wanted, await asyncio.gather(*map(read_one, wanted)), strict=True))

        return _run(read_all())

    def fetch(self, paths: Mapping[str, Path], largest: int = 0) -> None:
        """Write the latest content of files into local ones, side by side and piece by piece.

        :param paths: the local file by path; its folder exists.
        :param largest: bytes of the largest of them; large ones get more time.
        :raises FileNotFoundError: one of them does not exist; what was written stays.
        """
        wanted = {inner_path(path): local for path, local in paths.items()}

        async def fetch_all() -> None:
            slots = asyncio.Semaphore(PARALLEL_READS)

            async def fetch_one(path: str, local: Path) -> None:
                async with slots:
                    await self._attempt(
                        f"read {path} of the Volume",
                        lambda: self._fetch(path, local),
                        extra=largest / SLOWEST_DOWNLOAD,
                    )

            await asyncio.gather(*(fetch_one(path, local) for path, local in wanted.items()))

        _run(fetch_all())

    def read_immutable(self, path: str) -> bytes:
        """Return the content of a file that never changes once it is there: from the mount if it is there.

        :raises FileNotFoundError: there is no such file.
        """
        return self._read_mounted(path) if self.mounted(path) else self.read(path)

    def read_stream(self, path: str, *, immutable: bool = False) -> Generator[bytes, None, None]:
        """Yield a file's content in chunks, in bounded memory: two blocks of 8 MiB per core of the machine.

        It costs a thread while it is read: close the generator when the rest is not wanted. The file must
        not be replaced meanwhile: a connection that breaks is followed by one that would go on in the new.

        :param immutable: the file never changes, so it may come from the mount. It is open there while it
            is read, which keeps the container from reloading its mount: be quick.
        :raises FileNotFoundError: there is no such file; raised by the first step.
        """
        inner_path(path)
        return self._mounted_chunks(path) if immutable and self.mounted(path) else self._chunks(path)

    def read_range(self, path: str, start: int, length: int, *, immutable: bool = False) -> bytes:
        """Return up to ``length`` bytes of a file from byte ``start`` on; fewer where the file ends before.

        Off the mount it costs what the range's end is away from the file's beginning: the SDK begins there.

        :raises FileNotFoundError: there is no such file.
        :raises ValueError: ``start`` or ``length`` is negative.
        """
        if start < 0 or length < 0:
            raise ValueError(f"no range of a file: {length} bytes from byte {start}")
        if immutable and self.mounted(path):
            with self._open_mounted(path) as file:
                file.seek(start)
                return file.read(length)
        wanted = bytearray()
        position = 0
        with closing(self._chunks(inner_path(path))) as chunks:
            for chunk in chunks:
                wanted += chunk[max(start - position, 0) : max(start + length - position, 0)]
                position += len(chunk)
                if position >= start + length:
                    break
        return bytes(wanted)

    def download(self, path: str, local: Path, *, immutable: bool = False) -> int:
        """Copy a file to local disk in bounded memory and return its size; ``local`` appears as a whole.

        :raises FileNotFoundError: there is no such file, or no folder for ``local``.
        """
        with tempfile.NamedTemporaryFile(
            dir=local.parent, prefix=f".{local.name[:40]}.", delete=False
        ) as file:
            try:
                with closing(self.read_stream(path, immutable=immutable)) as chunks:
                    for chunk in chunks:
                        file.write(chunk)
                size = file.tell()
                file.close()
                os.replace(file.name, local)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        return size

    def mounted(self, path: str) -> bool:
        """Return whether this container's mount holds the file (files that came later are missing there)."""
        return self.mounted_path(path) is not None

    def mounted_path(self, path: str) -> Path | None:
        """Return where this container's mount holds the file; None for one that came later, or elsewhere."""
        if self._mount is None:
            return None
        local = below(self._mount, path)
        return local if local.is_file() else None

    def write(self, path: str, source: Source) -> None:
        """Replace a file as a whole; readers see the old content or the new one."""
        self.write_many({path: source})

    def write_many(self, files: Mapping[str, Source]) -> None:
        """Replace several files in one upload, or in a few if there are thousands.

        What is on disk is read in pieces, so that memory stays bounded. An open file goes through a
        temporary copy: the SDK would read it from several threads, which share one position.

        :raises FileNotFoundError: a local file does not exist.
        """
        wanted = {inner_path(path): source for path, source in files.items()}
        rest = iter(wanted.items())
        while batch := dict(islice(rest, FILES_PER_UPLOAD)):
            with ExitStack() as copies:
                self._upload(
                    {
                        path: source
                        if isinstance(source, bytes | Path)
                        else copies.enter_context(_copied(source))
                        for path, source in batch.items()
                    }
                )

    def _upload(self, files: Mapping[str, bytes | Path]) -> None:
        size = sum(
            source.stat().st_size if isinstance(source, Path) else len(source) for source in files.values()
        )

        async def upload() -> None:
            async with self._volume.batch_upload.aio(force=True) as batch:
                for path, source in files.items():
                    local = source if isinstance(source, Path) else io.BytesIO(source)
                    batch.put_file(local, "/" + path)

        what = f"write {next(iter(files))} to the Volume" + (
            f" (and {len(files) - 1} more)" if len(files) > 1 else ""
        )
        _run(self._attempt(what, upload, extra=size / SLOWEST_UPLOAD))

    def list(self, path: str, recursive: bool = False) -> list[Entry]:
        """Return what a folder holds, sorted by path; an empty list if it does not exist.

        :param path: the folder; ``""`` is the Volume's root.
        """
        folder = inner_path(path) if path else ""

        async def list_folder() -> list[Entry]:
            entries = await self._volume.listdir.aio("/" + folder, recursive=recursive)
            return sorted((_entry(entry) for entry in entries), key=lambda entry: entry.path)

        return _run(self._attempt(f"list {folder or '/'} of the Volume", list_folder, missing=[]))

    def remove(self, path: str, recursive: bool = False) -> None:
        """Remove a file, or with ``recursive`` a folder; what does not exist counts as removed."""
        self.remove_many([path], recursive)

    def remove_many(self, paths: Iterable[str], recursive: bool = False) -> None:
        """Remove several files or folders side by side; what does not exist counts as removed."""
        doomed = [inner_path(path) for path in paths]

        async def remove_all() -> None:
            slots = asyncio.Semaphore(PARALLEL_REMOVALS)

            async def remove_one(path: str) -> None:
                async with slots:
                    await self._attempt(
                        f"remove {path} from the Volume",
                        lambda: self._volume.remove_file.aio("/" + path, recursive=recursive),
                        missing=None,
                    )

            await asyncio.gather(*map(remove_one, doomed))

        _run(remove_all())

    async def _read(self, path: str) -> bytes:
        return b"".join([chunk async for chunk in self._volume.read_file.aio("/" + path)])

    def _read_mounted(self, path: str) -> bytes:
        with self._open_mounted(path) as file:
            return file.read()

    def _open_mounted(self, path: str) -> IO[bytes]:
        assert self._mount is not None
        return below(self._mount, path).open("rb")

    def _mounted_chunks(self, path: str) -> Generator[bytes, None, None]:
        with self._open_mounted(path) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def _chunks(self, path: str) -> Generator[bytes, None, None]:
        what = f"read {path} of the Volume"
        chunks = Chunks(lambda: self._volume.read_file.aio("/" + path))
        with OwnLoop("volume-stream") as loop:
            try:
                while chunk := loop.run(
                    self._attempt(what, chunks.step, extra=chunks.most_bytes() / SLOWEST_DOWNLOAD)
                ):
                    yield chunk
            finally:
                loop.run(chunks.close())

    async def _fetch(self, path: str, local: Path) -> None:
        with local.open("wb") as file:
            async for chunk in self._volume.read_file.aio("/" + path):
                file.write(chunk)

    async def _attempt(
        self,
        what: str,
        operation: Callable[[], Awaitable[T]],
        *,
        extra: float = 0.0,
        missing: Any = ...,
    ) -> T:
        """Run an operation until it succeeds, fails for good or is out of time.

        :param extra: seconds on top of the deadline.
        :param missing: the result when the path does not exist; by default that is an error.
        """
        from modal import exception

        ends = time.monotonic() + self._deadline + extra
        for delay in (*_DELAYS, None):
            try:
                with translated(what):
                    return await asyncio.wait_for(
                        self._on_volume(operation), max(ends - time.monotonic(), 0.01)
                    )
            except (FileNotFoundError, exception.NotFoundError) as error:
                if missing is ...:
                    raise FileNotFoundError(f"can't {what}: it does not exist") from error
                return missing
            except UnreachableError as error:
                passing = isinstance(error.__cause__, passing_errors())
                if not passing or delay is None or time.monotonic() + delay >= ends:
                    raise
                log.warning("%s; next attempt in %.1f s", error, delay)
                await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    async def _on_volume(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Tell a missing Volume from a missing path: the SDK reports both alike."""
        from modal import exception

        if not self._found:
            try:
                await self._volume.hydrate.aio()
            except exception.NotFoundError as error:
                raise NotFoundError(
                    f"the environment's Volume does not exist ({error}); create it: modalflow create"
                ) from error
            self._found = True
        return await operation()


def _entry(entry: Any) -> Entry:
    # By name: the enumeration moved between the SDK's modules.
    kind = entry.type.name
    return Entry(
        path=entry.path.strip("/"),
        size=entry.size,
        mtime=float(entry.mtime),
        is_dir=kind == "DIRECTORY",
        is_file=kind == "FILE",
    )


@contextmanager
def _copied(source: IO[bytes]) -> Iterator[Path]:
    """Copy what is left of an open file to a temporary one; it has the mode of an ordinary file."""
    with tempfile.TemporaryDirectory(prefix="volume-upload-") as folder:
        copy = Path(folder) / "copy"
        with copy.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK_BYTES)
        yield copy


def _run(operation: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also for a caller whose thread runs an event loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(operation)
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(operation))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="volume-files")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]

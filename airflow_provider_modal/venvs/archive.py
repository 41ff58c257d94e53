"""How does a folder become one file, and safely a folder again?

A gzipped tar with regular files, folders and links that stay inside; anything else is refused on both ways.
Unpacking trusts nothing in it: not the names, not the kinds, not the modes.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from posixpath import dirname, normpath

from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.volume.paths import inner_path

LEVEL = 1
"""Of compression: unpacking costs the same at all levels, packing several times as much at a higher one."""
SUFFIX = ".tar.gz"
BLOCK = 1024 * 1024


class ArchiveError(ModalflowError):
    """A file is not an archive of ours, or holds what must not be in one."""


def pack(folder: Path, target: Path, skip: Callable[[str], bool] = lambda _path: False) -> None:
    """Write what a folder holds into an archive.

    :param skip: says which paths below the folder to leave out.
    :raises ArchiveError: it holds a link that leads out of it, or a special file.
    """
    with (
        target.open("wb") as raw,
        # Without a time of its own: equal folders make equal archives.
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=LEVEL, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for local, path in _walk(folder):
            if not skip(path):
                _add(tar, local, path)


def unpack(archive: Path, folder: Path) -> None:
    """Write what an archive holds below a folder, which must be empty.

    :raises ArchiveError: it is no archive, is cut off, or holds what could reach out of the folder.
    """
    made: set[Path] = set()
    try:
        with gzip.open(archive, "rb") as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
            for member in tar:
                _extract(tar, member, folder, made)
            # To the checksum behind the last member, which is verified when it is reached.
            while packed.read(BLOCK):
                pass
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EEXIST):
            raise  # of the local disk
        raise ArchiveError(f"{archive.name} can't be unpacked: {error}") from None


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    for root, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in sorted(files + links):
            local = Path(root, name)
            yield local, local.relative_to(folder).as_posix()


def _add(tar: tarfile.TarFile, local: Path, path: str) -> None:
    info = tarfile.TarInfo(path)
    if local.is_symlink():
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(local)
        if not _stays_inside(path, info.linkname):
            raise ArchiveError(f"{path} is a link to {info.linkname}, outside of the folder")
        tar.addfile(info)
        return
    if not local.is_file():
        raise ArchiveError(f"{path} is neither a file nor a link")
    status = local.stat()
    info.size, info.mtime = status.st_size, int(status.st_mtime)
    info.mode = 0o755 if status.st_mode & 0o100 else 0o644
    with local.open("rb") as file:
        tar.addfile(info, file)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, made: set[Path]) -> None:
    path = inner_path(member.name)
    target = folder / path
    parent = target.parent
    if parent not in made:
        # Through a link of the archive's own one could write anywhere.
        if os.path.realpath(parent) != os.path.join(os.path.realpath(folder), *Path(path).parent.parts):
            raise ArchiveError(f"{path} lies below a link")
        parent.mkdir(parents=True, exist_ok=True)
        made.add(parent)
    if member.issym():
        if not _stays_inside(path, member.linkname):
            raise ArchiveError(f"{path} is a link to {member.linkname}, outside of the folder")
        target.symlink_to(member.linkname)
        return
    source = tar.extractfile(member) if member.isreg() else None
    if source is None:
        raise ArchiveError(f"{path} is neither a file nor a link")
    mode = 0o755 if member.mode & 0o100 else 0o644
    # Exclusive: a name twice, or one that a link has, is not followed.
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        shutil.copyfileobj(source, file, BLOCK)


def _stays_inside(path: str, link: str) -> bool:
    reached = normpath(f"{dirname(path)}/{link}" if dirname(path) else link)
    return not link.startswith("/") and reached != ".." and not reached.startswith(("../", "/"))

"""Where are finished virtualenvs, and for how long?

    venvs/{key}.json             what is known of one: its archive, length, sha256, packages
    venvs/{key}.{unique}.tar.gz  the archive

An archive never changes and has a name of its own; the small file that names it is replaced as a whole, and
only once the archive is there. So builders that don't know of each other do no harm, and half an archive is
never found. Its last use is noted in the same file, once a day at most.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from airflow_provider_modal import names
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.venvs import archive
from airflow_provider_modal.volume.digests import sha256_of
from airflow_provider_modal.volume.files import Entry, VolumeFiles

log = logging.getLogger(__name__)

FORMAT = 1
USE_NOTED_SECONDS = 86_400.0
"""How old the note of the last use may be before it is renewed."""
UPLOAD_SECONDS = 86_400.0
"""After this an archive that nothing names is no upload under way any more."""
_POINTER, _ARCHIVE = ".json", archive.SUFFIX


class DamagedError(ModalflowError):
    """An archive is not what was stored; the message names it."""


@dataclass(frozen=True)
class Stored:
    """A finished virtualenv on the Volume.

    :param archive: path of the archive on the Volume.
    :param size: of the archive, in bytes.
    :param packages: what it holds, ``name==version``.
    :param links: of its interpreter, which lead out of it and are no part of the archive.
    :param made_at: seconds since the epoch; ``used_at``, of the last noted use, likewise.
    """

    archive: str
    size: int
    sha256: str
    packages: tuple[str, ...]
    made_at: float
    used_at: float
    links: Mapping[str, str] = field(default_factory=dict)


class VenvStore:
    """Virtualenvs on an environment's Volume, by key."""

    def __init__(self, files: VolumeFiles) -> None:
        self._files = files

    def find(self, key: str) -> Stored | None:
        """Return what is stored under a key; None if nothing usable is."""
        path = _pointer(key)
        try:
            return _read(self._files.read(path))
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            log.warning("%s on the Volume is not one of ours (%s); it is made anew", path, error)
            return None

    def save(
        self, key: str, local: Path, packages: Iterable[str], links: Mapping[str, str] | None = None
    ) -> Stored:
        """Store an archive under a key, for everybody who asks from now on."""
        now = time.time()
        stored = Stored(
            archive=f"{names.VENVS_FOLDER}/{key}.{uuid.uuid4().hex}{_ARCHIVE}",
            size=local.stat().st_size,
            sha256=sha256_of(local),
            packages=tuple(packages),
            made_at=now,
            used_at=now,
            links=dict(links or {}),
        )
        self._files.write(stored.archive, local)
        # Last, because whoever follows it must find all of the archive.
        self._files.write(_pointer(key), _bytes(stored))
        return stored

    def fetch(self, stored: Stored, target: Path) -> None:
        """Bring an archive to local disk, exactly as it was stored.

        :raises FileNotFoundError: it was removed meanwhile.
        :raises DamagedError: it is not what was stored.
        """
        self._files.download(stored.archive, target, immutable=True)
        if _fits(stored, target):
            return
        # The mount may have been written to by a task; the SDK's answer is the Volume's own.
        self._files.download(stored.archive, target)
        if not _fits(stored, target):
            raise DamagedError(
                f"{stored.archive} on the Volume is damaged: it has {target.stat().st_size:,} bytes, of "
                f"{stored.size:,} that were stored, or others than those"
            )

    def note_use(self, key: str, stored: Stored) -> None:
        """Keep a virtualenv from being pruned; writes once a day at most.

        Whoever replaced the entry meanwhile is overruled: at worst with an archive that is gone or damaged,
        which the next one to use it finds out, and makes it anew.
        """
        now = time.time()
        if now - stored.used_at >= USE_NOTED_SECONDS:
            self._files.write(_pointer(key), _bytes(replace(stored, used_at=now)))


@dataclass(frozen=True)
class Pruned:
    """A file that was removed, or would be.

    :param path: on the Volume.
    :param size: bytes.
    :param because: why nobody needs it.
    """

    path: str
    size: int
    because: str


def prune(
    files: VolumeFiles, unused_seconds: float, *, now: float | None = None, dry_run: bool = False
) -> list[Pruned]:
    """Remove the virtualenvs that nobody has used for a while, and archives that nothing names.

    A use is noted once per day and container, when the container unpacks the archive: ``unused_seconds``
    should be several days. A task that wants a virtualenv again has it made anew.

    :param now: seconds since the epoch.
    :param dry_run: only tell what would be removed.
    :return: what was removed.
    :raises UnreachableError: Modal did not answer; what was removed until then stays removed.
    """
    now = time.time() if now is None else now
    entries = [entry for entry in files.list(names.VENVS_FOLDER) if entry.is_file]
    named: dict[str, str] = {}
    found: list[Pruned] = []
    for entry in entries:
        if not entry.path.endswith(_POINTER):
            continue
        stored = _stored(files, entry)
        used_at = entry.mtime if stored is None else max(stored.used_at, entry.mtime)
        if now - used_at > unused_seconds:
            because = f"not used for {(now - used_at) / 86_400:.0f} days"
            found.append(Pruned(entry.path, entry.size, because))
        elif stored is not None:
            named[stored.archive] = entry.path
    gone = {pruned.path.removesuffix(_POINTER) for pruned in found}
    for entry in entries:
        if not entry.path.endswith(_ARCHIVE) or entry.path in named:
            continue
        # Of one that is pruned: its name begins with the key.
        if entry.path.removesuffix(_ARCHIVE).rpartition(".")[0] in gone:
            found.append(Pruned(entry.path, entry.size, "its virtualenv is not used any more"))
        elif now - entry.mtime > UPLOAD_SECONDS:
            found.append(Pruned(entry.path, entry.size, "nothing names it"))
    # What names an archive goes first: nobody may find a name without its archive for long.
    for pruned in found if not dry_run else ():
        files.remove(pruned.path)
    return found


def _stored(files: VolumeFiles, entry: Entry) -> Stored | None:
    try:
        return _read(files.read(entry.path))
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None  # removed meanwhile, or not one of ours: it ages by its time of modification


def _pointer(key: str) -> str:
    return f"{names.VENVS_FOLDER}/{key}{_POINTER}"


def _bytes(stored: Stored) -> bytes:
    return json.dumps({"format": FORMAT, **asdict(stored)}, sort_keys=True).encode()


def _read(content: bytes) -> Stored:
    data = json.loads(content)
    if data.pop("format") != FORMAT:
        raise ValueError("another format")
    return Stored(**{**data, "packages": tuple(data["packages"])})


def _fits(stored: Stored, local: Path) -> bool:
    return local.stat().st_size == stored.size and sha256_of(local) == stored.sha256

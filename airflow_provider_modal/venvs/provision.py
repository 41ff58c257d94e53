"""How does a container get the virtualenv for a list of requirements onto its local disk?

From its own disk, where the tasks before left it; else from the Volume; else it is made, by one container
while the others wait, and stored for all. A folder appears complete or not at all, whoever is killed when.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_modal import airflow_settings, names
from airflow_provider_modal.errors import ERRORS_BY_KIND, ModalflowError, UnreachableError, kind_of
from airflow_provider_modal.venvs import archive, folder, image, installer
from airflow_provider_modal.venvs.lease import FailedElsewhereError, Lease, State
from airflow_provider_modal.venvs.store import DamagedError, Stored, VenvStore
from airflow_provider_modal.volume.files import VolumeFiles

log = logging.getLogger(__name__)

BUILDER = 1
"""Part of every key: raise it when the same requirements are to be installed otherwise."""

Note = Callable[[str, str], None]
"""Takes a level (``info``, ``warning``) and a line for the log of whatever waits for the virtualenv."""


def key_of(requirements: tuple[str, ...]) -> str:
    """Return what identifies the virtualenv: equal keys, equal packages, wherever this image runs.

    Everything that the image has is part of it, because only what it lacks is installed. A range of versions
    stays at what it was when it was installed first, as long as somebody uses it.

    :param requirements: as ``requirements.normalised`` returns them.
    """
    recipe = {
        "builder": BUILDER,
        "requirements": requirements,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "platform": image.platform_tag(),
        "image": sorted(image.installed().items()),
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Limits:
    """How long it may take.

    :param ends: when an installation must be through, by the monotonic clock.
    :param stop: asked several times a second while waiting; True ends it with ``installer.StoppedError``.
    """

    ends: float
    stop: Callable[[], bool] = lambda: False


class Venvs:
    """Virtualenvs of this container.

    Processes and threads may ask for the same one: one works, the others wait for it.

    :param state: the environment's state Dict.
    :param holder: who works, for those who wait in other containers.
    :param note: told what takes time.
    :param root: folder for them.
    """

    def __init__(
        self, files: VolumeFiles, state: State, *, holder: str, note: Note, root: Path | None = None
    ) -> None:
        self._store = VenvStore(files)
        self._state = state
        self._holder = holder
        self._note = note
        self._root = root or airflow_settings.local_root() / "venvs"
        self._damaged: set[str] = set()
        """Archives on the Volume that can't be used."""

    def ready(self, requirements: tuple[str, ...], environ: Mapping[str, str], limits: Limits) -> Path:
        """Return the folder of the virtualenv, which is complete.

        :param environ: says where packages come from, should they have to be installed.
        :raises ConfigError: the requirements ask to replace what Airflow needs.
        :raises ModalflowError: they can't be installed; ``installer.StoppedError`` if nobody wants it now.
        :raises UnreachableError: the package index does not answer.
        """
        key = key_of(requirements)
        target = self._root / key
        if target.is_dir():
            return target
        self._root.mkdir(parents=True, exist_ok=True)
        with _locked(self._root / f".{key}.lock"):
            if not target.is_dir() and not self._fetched(key, target):
                self._made(key, target, requirements, environ, limits)
        return target

    def _found(self, key: str) -> Stored | None:
        stored = self._store.find(key)
        return None if stored is None or stored.archive in self._damaged else stored

    def _fetched(self, key: str, target: Path) -> bool:
        """Unpack the virtualenv from the Volume; return whether it was there."""
        started = time.monotonic()
        stored = self._found(key)
        if stored is None:
            return False
        packed = self._root / f".{key}{archive.SUFFIX}"
        try:
            self._store.fetch(stored, packed)
            with self._complete(target) as partial:
                archive.unpack(packed, partial)
                folder.make(partial)
        except FileNotFoundError as error:
            log.info("%s; it was pruned meanwhile", error)
            return False
        except (DamagedError, archive.ArchiveError) as error:
            self._damaged.add(stored.archive)
            self._note("warning", f"{error}; the virtualenv is built again")
            return False
        finally:
            packed.unlink(missing_ok=True)
        seconds = time.monotonic() - started
        self._note(
            "info", f"took the virtualenv {key[:12]} ({_mib(stored.size)}) from the Volume in {seconds:.1f} s"
        )
        self._store.note_use(key, stored)
        return True

    def _made(
        self,
        key: str,
        target: Path,
        requirements: tuple[str, ...],
        environ: Mapping[str, str],
        limits: Limits,
    ) -> None:
        lease = Lease(self._state, names.venv_key(key), self._holder)

        def done() -> bool:
            if limits.stop():
                raise installer.StoppedError("nobody waits for the virtualenv any more")
            if time.monotonic() >= limits.ends:
                raise ModalflowError(
                    "another container did not install the task's requirements in time; put large packages "
                    "into the image (image.pip in config.yaml), or give the task a longer timeout"
                )
            return self._found(key) is not None

        def wait_for(holder: str) -> None:
            self._note("info", f"container {holder} builds the virtualenv {key[:12]}; waiting for it")

        try:
            ours = lease.acquire(done, wait_for)
        except FailedElsewhereError as error:
            raise _error(error.failure) from None
        if not ours:
            if self._fetched(key, target):
                return
            # It is damaged already, or pruned.
            self._build(key, target, requirements, environ, limits)
            return
        with lease.kept():
            try:
                # It may have been made between our look and the lease.
                if not self._fetched(key, target):
                    self._build(key, target, requirements, environ, limits)
            except installer.StoppedError:
                raise
            except ModalflowError as error:
                lease.fail({"kind": kind_of(error), "text": str(error)})
                raise

    def _build(
        self,
        key: str,
        target: Path,
        requirements: tuple[str, ...],
        environ: Mapping[str, str],
        limits: Limits,
    ) -> None:
        self._note("info", f"building the virtualenv {key[:12]}: {', '.join(requirements)}")
        started = time.monotonic()
        variables = installer.environment(environ, self._root / "uv-cache")
        order = installer.Order(requirements, variables, limits.ends, limits.stop)
        packed = self._root / f".{key}{archive.SUFFIX}"
        try:
            with self._complete(target) as partial:
                packages = installer.install(order, partial)
                archive.pack(partial, packed, folder.is_of_container)
            installed = time.monotonic()
            told = f"built the virtualenv {key[:12]} in {installed - started:.1f} s: {len(packages)} packages"
            try:
                stored = self._store.save(key, packed, packages)
            except UnreachableError as error:
                # It serves this container's tasks all the same.
                self._note("warning", f"{told}; it can't be kept on the Volume: {error}")
                return
            stored_in = time.monotonic() - installed
            self._note("info", f"{told}, {_mib(stored.size)} stored on the Volume in {stored_in:.1f} s")
        finally:
            packed.unlink(missing_ok=True)

    @contextmanager
    def _complete(self, target: Path) -> Iterator[Path]:
        """An empty folder that becomes ``target`` if the block succeeds."""
        partial = target.with_name(f".{target.name}.partial")
        # Left by a process that died half-way; nobody else works on it while we hold the lock.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            os.rename(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _error(failure: Mapping[str, str]) -> ModalflowError:
    """Return the error that another container had."""
    return ERRORS_BY_KIND.get(failure.get("kind", ""), ModalflowError)(failure.get("text"))


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

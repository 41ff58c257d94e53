"""How does a ``PythonVirtualenvOperator``'s own cache outlive its container?

Where a task names a ``venv_cache_path`` on local disk, Airflow makes a virtualenv there and uses it again. A
container's disk goes with it, so a finished one is stored on the Volume, and the next container finds it in
its place before Airflow looks. Several containers that come to it first at the same time each make it; the
last one to store it counts. Whatever goes wrong here costs time, never a task.

Private names of Airflow that this rests on: the operator's ``_ensure_venv_cache_exists`` and
``_calculate_cache_hash``, ``venv-{hash}``, its lock and its ``install_complete_marker.json``.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow_provider_modal import airflow_settings
from airflow_provider_modal.venvs import archive, image
from airflow_provider_modal.venvs.store import VenvStore
from airflow_provider_modal.volume.files import VolumeFiles
from airflow_provider_modal.volume.paths import below

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every key."""
OPERATOR = ("airflow.providers.standard.operators.python", "PythonVirtualenvOperator")
MARKER = "install_complete_marker.json"
"""What Airflow writes into a virtualenv last."""


def keep_caches() -> None:
    """Have the operators of this process, and of all that it forks, keep their caches on the Volume."""
    module, name = OPERATOR
    try:
        operator = getattr(importlib.import_module(module), name)
        original = operator._ensure_venv_cache_exists
        operator._calculate_cache_hash  # noqa: B018
    except (ImportError, AttributeError) as error:
        log.info("caches of virtualenv operators are not kept: %s", error)
        return
    operator._ensure_venv_cache_exists = _keeping(original)


def _keeping(original: Callable[[Any, Path], Path]) -> Callable[[Any, Path], Path]:
    @functools.wraps(original)
    def ensure(operator: Any, venv_cache_path: Path) -> Path:
        kept: KeptVenv | None = None
        with _harmless():
            digest, description = operator._calculate_cache_hash()
            folder = venv_cache_path.absolute() / f"venv-{digest}"
            # What is on the Volume's mount stays there by itself.
            if not folder.is_relative_to(airflow_settings.volume_mount()):
                files = VolumeFiles.open(airflow_settings.deployed_names(), airflow_settings.volume_mount())
                kept = KeptVenv(files, folder, description)
        was_there = False
        if kept is not None:
            with _harmless():
                was_there = kept.restore()
        found = original(operator, venv_cache_path)
        if kept is not None and not was_there:
            with _harmless():
                kept.save()
        return found

    return ensure


class KeptVenv:
    """One virtualenv of an operator's cache.

    :param folder: where it must be: virtualenvs hold their own path.
    :param description: all that it depends on, in Airflow's words.
    """

    def __init__(self, files: VolumeFiles, folder: Path, description: str) -> None:
        self._store = VenvStore(files)
        self._folder = folder
        recipe = [FORMAT, "operator", str(folder), description, image.platform_tag()]
        recipe.append(sorted(image.installed().items()))
        self._key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()

    def restore(self) -> bool:
        """Put it into its place from the Volume; return whether it is there now, or was already."""
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if (self._folder / MARKER).exists():
                return True
            stored = self._store.find(self._key)
            if stored is None:
                return False
            missing = [target for target in stored.links.values() if not os.access(target, os.X_OK)]
            if missing:
                log.info("the virtualenv on the Volume needs %s, which is not here", ", ".join(missing))
                return False
            packed, partial = self._beside(archive.SUFFIX), self._beside(".partial")
            try:
                self._store.fetch(stored, packed)
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                archive.unpack(packed, partial)
                for path, target in stored.links.items():
                    below(partial, path).symlink_to(target)
                shutil.rmtree(self._folder, ignore_errors=True)
                os.rename(partial, self._folder)
            finally:
                packed.unlink(missing_ok=True)
                shutil.rmtree(partial, ignore_errors=True)
        log.info("took the virtualenv %s from the Volume", self._folder)
        self._store.note_use(self._key, stored)
        return True

    def save(self) -> None:
        """Store it on the Volume, once Airflow has made it."""
        packed = self._beside(archive.SUFFIX)
        links = {
            path.relative_to(self._folder).as_posix(): os.readlink(path)
            for path in sorted((self._folder / "bin").glob("python*"))
            if path.is_symlink() and os.path.isabs(os.readlink(path))
        }
        with self._locked():
            try:
                archive.pack(self._folder, packed, links.__contains__)
                self._store.save(self._key, packed, (), links)
            finally:
                packed.unlink(missing_ok=True)
        log.info("stored the virtualenv %s on the Volume", self._folder)

    def _beside(self, suffix: str) -> Path:
        return self._folder.with_name(f".{self._folder.name}{suffix}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Airflow's own lock."""
        with Path(f"{self._folder}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@contextmanager
def _harmless() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log.warning("the virtualenv's copy on the Volume is not used: %s: %s", type(error).__name__, error)

"""Where are values written to and read from, in a container of an environment and outside of Modal?

Written through the SDK, so that whoever reads them next finds them. A file of ours never changes: where this
container's mount has it, no call is made, and the SDK is not even imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import airflow_settings, names
from airflow_provider_modal.errors import ConfigError, NotFoundError
from airflow_provider_modal.volume.paths import below
from airflow_provider_modal.xcom import payload
from airflow_provider_modal.xcom.payload import PIECE, DamagedXComError, Packed
from airflow_provider_modal.xcom.reference import Reference

if TYPE_CHECKING:
    from airflow_provider_modal.volume.files import VolumeFiles


class Place:
    """The XComs of one environment.

    :param resources: the environment's names.
    :param mount: where this container has the Volume, if it is one of the environment's.
    """

    def __init__(self, resources: names.ResourceNames, mount: Path | None = None) -> None:
        self._resources = resources
        self._mount = mount
        self._opened: VolumeFiles | None = None

    def store(self, path: str, packed: Packed, kind: str) -> Reference:
        """Write a value onto the Volume and return where it is, once everybody can read it.

        :param path: without suffix.
        :param kind: the value's type, for people.
        :raises UnreachableError: Modal does not answer.
        """
        path += packed.suffix
        self._files.write(path, packed.local)
        return Reference(
            kind,
            packed.bytes,
            path,
            packed.encoding,
            packed.compression,
            packed.stored_bytes,
            packed.sha256,
        )

    def load(self, reference: Reference) -> Any:
        """Return the value's JSON, parsed, or the unpickled value.

        :raises NotFoundError: its file is gone.
        :raises DamagedXComError: it is not what was stored.
        """
        local = self._mounted(reference)
        if local is not None:
            try:
                with payload.checked_copy(reference, _pieces(local)) as copy:
                    return payload.load(reference, copy)
            except DamagedXComError:
                pass  # a task may have written to its mount; the Volume's own answer counts
        try:
            with payload.checked_copy(reference, self._files.read_stream(reference.path)) as copy:
                return payload.load(reference, copy)
        except FileNotFoundError:
            raise NotFoundError(
                f"{reference.path} is not on the Volume any more: the task that returned it was cleared, or "
                "its run is so old that it was cleaned up; clear that task"
            ) from None

    def remove(self, reference: Reference) -> None:
        """Remove a value; one that is gone counts as removed."""
        self._files.remove(reference.path)

    @property
    def _files(self) -> VolumeFiles:
        if self._opened is None:
            from airflow_provider_modal.volume.files import VolumeFiles

            self._opened = VolumeFiles.open(self._resources)
        return self._opened

    def _mounted(self, reference: Reference) -> Path | None:
        if self._mount is None:
            return None
        local = below(self._mount, reference.path)
        return local if local.is_file() else None


@cache
def current() -> Place:
    """Return the place of the environment that this process belongs to, or that Airflow is configured for.

    :raises ConfigError: there is none.
    """
    if airflow_settings.ENV_NAME in os.environ and airflow_settings.VOLUME_PATH in os.environ:
        return Place(airflow_settings.deployed_names(), airflow_settings.volume_mount())
    env = configuration().get("modal", "environment", fallback=None)
    if not env:
        raise ConfigError(
            "XComs are kept on the Volume of a Modal environment, and none is named: set [modal] environment "
            "in airflow.cfg (AIRFLOW__MODAL__ENVIRONMENT)"
        )
    return Place(names.ResourceNames(env))


def configuration() -> Any:
    """Return Airflow's configuration, as this process reads it."""
    try:
        from airflow.sdk.configuration import conf
    except ImportError:  # before 3.2
        from airflow.configuration import conf
    return conf


def _pieces(local: Path) -> Iterator[bytes]:
    # Open for a moment only: an open file keeps the container from reloading its mount.
    with local.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece

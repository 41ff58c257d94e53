"""Where do triggers come from that are the user's own?

Airflow's triggerer imports a trigger by its class path. Besides installed packages it finds what the DAG tree
holds: modules at its top, and those in its ``plugins/`` and ``include/``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from psycopg2.extensions import connection as Connection

from airflow_provider_modal import airflow_settings, names
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.volume import dag_copies
from airflow_provider_modal.volume.files import VolumeFiles

log = logging.getLogger(__name__)

_STATE = """
    SELECT (SELECT version FROM dag_bundle WHERE name = %s),
           ARRAY(SELECT DISTINCT split_part(classpath, '.', 1) FROM trigger)
"""


@dataclass(frozen=True)
class Code:
    """The user's code that a triggerer runs with.

    :param digest: the DAG version; None before the first one was parsed.
    :param folder: where it is on local disk; None if it can't be had.
    """

    digest: str | None = None
    folder: Path | None = None

    def holds(self, module: str) -> bool:
        """Tell whether the user's tree has a top-level module or package of this name."""
        if self.folder is None:
            return False
        return any(
            (place / f"{module}.py").is_file() or (place / module).is_dir()
            for place in (self.folder, *(self.folder / name for name in dag_copies.NO_DAGS))
        )


def current(connection: Connection, files: VolumeFiles) -> tuple[Code, list[str]]:
    """Return the current code, ready on local disk, and the top-level modules that triggers come from."""
    with connection.cursor() as cursor:
        cursor.execute(_STATE, (names.BUNDLE_NAME,))
        digest, modules = cursor.fetchone() or (None, [])
    if digest is None:
        return Code(), modules
    try:
        return Code(digest, dag_copies.materialise(files, digest, dag_copies.default_root())), modules
    except ModalflowError as error:
        log.error("triggers run without the user's own modules: %s", error)
        return Code(digest), modules


def open_files() -> VolumeFiles:
    """Return the environment's Volume, as a container sees it."""
    return VolumeFiles.open(airflow_settings.deployed_names(), airflow_settings.volume_mount())

"""Which DAG files need not be parsed, because neither they nor what they may import has changed?

Airflow parses every file again and again, half a minute apart, and so finds changes of modules that DAGs
import. A bounded run parses what changed, so it has to know what a change may concern.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass

from psycopg2.extensions import connection as Connection

from airflow_provider_modal import names
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.volume.dag_copies import NO_DAGS
from airflow_provider_modal.volume.dag_versions import DagVersion, read_version
from airflow_provider_modal.volume.files import VolumeFiles

log = logging.getLogger(__name__)

_KNOWN = """
    SELECT ARRAY(SELECT DISTINCT relative_fileloc FROM dag
                  WHERE bundle_name = %(bundle)s AND relative_fileloc IS NOT NULL),
           ARRAY(SELECT DISTINCT filename FROM import_error
                  WHERE bundle_name = %(bundle)s AND filename IS NOT NULL)
"""


@dataclass(frozen=True)
class Known:
    """What the database knows of files.

    :param defining: those that define DAGs, or did.
    :param failing: those with an import error.
    """

    defining: Set[str]
    failing: Set[str]


def unchanged_files(
    files: VolumeFiles, connection: Connection, version: DagVersion, parsed: str | None
) -> list[str]:
    """Return the files that are as they were when version ``parsed`` was, sorted.

    :param parsed: digest of the version that was parsed last; None if there is none.
    """
    if parsed is None:
        return []
    if parsed == version.digest:
        return sorted(version.files)
    try:
        before = read_version(files, parsed).files
    except ModalflowError as error:
        # A picture of the past that is gone or damaged must not keep the present from being parsed.
        log.warning("every DAG file is parsed: %s", error)
        return []
    with connection.cursor() as cursor:
        cursor.execute(_KNOWN, {"bundle": names.BUNDLE_NAME})
        defining, failing = cursor.fetchone() or ([], [])
    return unconcerned(before, version.files, Known(frozenset(defining), frozenset(failing)))


def unconcerned(before: Mapping[str, str], now: Mapping[str, str], known: Known) -> list[str]:
    """Return the files that no difference between two versions concerns, sorted.

    A file that defines DAGs concerns only itself: one that is also imported by others is parsed with them
    when ``[dag_processor] min_file_process_interval`` is over. Anything else may be imported or read by every
    file; but what is new can't have been imported, except by a file that failed for the lack of it.
    """
    same = sorted(path for path, content in now.items() if before.get(path) == content)
    touched = {path for path, content in before.items() if now.get(path) != content}
    new = now.keys() - before.keys()
    own = known.defining | known.failing
    if any(_is_beside(path) or path not in own for path in touched):
        return []
    if any(_is_beside(path) or not path.endswith((".py", ".zip")) for path in new):
        return []
    return [path for path in same if path not in known.failing] if new else same


def _is_beside(path: str) -> bool:
    return path.startswith(tuple(f"{folder}/" for folder in NO_DAGS))

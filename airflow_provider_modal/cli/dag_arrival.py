"""Is a DAG unknown because it does not exist, or because its file was uploaded a moment ago?

It may still come while ``dags/`` on the Volume holds something of which the scheduler has not parsed every
file. After that, what is unknown does not exist, or its file has an import error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_modal.cli.options import env_flag
from airflow_provider_modal.cli.output import waiting
from airflow_provider_modal.errors import NotFoundError
from airflow_provider_modal.volume import dag_versions

if TYPE_CHECKING:
    from airflow_provider_modal.cli.modal_access import Access

T = TypeVar("T")

PARSED_SECONDS = 60.0
"""How long to wait for the scheduler to parse files: a cold start and the files' own time."""
_PAUSE = 1.0


def when_parsed(access: Access, ask: Callable[[], T], seconds: float = PARSED_SECONDS) -> T:
    """Return what ``ask`` returns; while it does not find its DAG and the DAG may still come, ask again.

    :param seconds: how long at most.
    :raises NotFoundError: there is no such DAG; the text has the import errors that may be why.
    """
    try:
        return ask()
    except NotFoundError as error:
        missing = error
    ends = time.monotonic() + seconds
    with waiting(f"{missing}; waiting for the scheduler to parse the newest DAG files"):
        while True:
            late = time.monotonic() >= ends
            # Before it is asked again: what was parsed by now, it finds.
            settled = _all_parsed(access, access.control.call("dags.parsed")["parsed_version"])
            try:
                return ask()
            except NotFoundError as error:
                if settled or late:
                    listed = access.control.call("dags.list")
                    raise NotFoundError(_explained(access, error, listed, settled)) from None
            time.sleep(_PAUSE)


def _all_parsed(access: Access, parsed_version: str | None) -> bool:
    held = dag_versions.current(access.files)
    # Nothing can come out of a folder without files, whether it was parsed or not.
    return held is not None and held in (parsed_version, dag_versions.DagVersion.of({}).digest)


def _explained(access: Access, error: NotFoundError, listed: Mapping[str, Any], settled: bool) -> str:
    lines = [str(error)]
    for broken in listed["import_errors"]:
        reason = str(broken["error"]).strip().splitlines() or ["no reason is known"]
        lines.append(f"{broken['file']} has an import error: {reason[-1].strip()}")
    see = f"modalflow dags list{env_flag(access.resources)}"
    if settled:
        lines.append(f"To see what there is: {see}")
    else:
        lines.append(
            f"The scheduler has not parsed the newest DAG files so far; try again, or see: {see}, and the "
            f"scheduler's log: modal app logs {access.resources.app}"
        )
    return "\n".join(lines)

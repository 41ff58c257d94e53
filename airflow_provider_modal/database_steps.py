"""The steps of ``create`` and ``destroy`` that concern the database: done by function ``control``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_modal import names
from airflow_provider_modal.app import CONTROL_TIMEOUT
from airflow_provider_modal.config import RUN_MARGIN_SECONDS, SchedulerConfig
from airflow_provider_modal.control.client import ControlClient
from airflow_provider_modal.db.ownership import TABLE
from airflow_provider_modal.errors import ModalflowError

RELEASE_SECONDS = 120.0
"""How long ``destroy`` waits for a database to be given up: it may be gone for good."""

Report = Callable[..., None]


def migrate(
    control: ControlClient, server: Mapping[str, Any], scheduler: SchedulerConfig, report: Report
) -> None:
    """Bring the schema up to date, if it is not.

    :param server: what ``claim_database`` told.
    :raises ModalflowError: it can't be migrated, or a scheduler run did not end.
    """
    if server["schema_current"]:
        report("unchanged", f"revision {server['revision']}")
        return
    migrated = _while_no_run(control, "migrate", scheduler, report)
    report("updated" if migrated["changed"] else "unchanged", f"revision {migrated['revision']}")


def drop_schema(resources: names.ResourceNames, report: Report) -> None:
    """Remove Airflow's tables and give the database up.

    :raises ModalflowError: that failed; nothing else has been removed.
    """
    control = ControlClient(resources, timeout=CONTROL_TIMEOUT)
    _while_no_run(control, "drop_schema", SchedulerConfig(), report)
    report("deleted")


def release(resources: names.ResourceNames, report: Report) -> None:
    """Give the database up. A database that can't be reached does not keep an environment from going."""
    try:
        released = ControlClient(resources, timeout=RELEASE_SECONDS).call("release_database")
    except ModalflowError as error:
        report(
            "kept",
            f"its mark of this environment was not removed ({error}). Before another environment can use "
            f"the database, run in it: DROP TABLE {TABLE}",
        )
        return
    report("updated" if released["changed"] else "unchanged", "free for another environment")


def _while_no_run(control: ControlClient, op: str, scheduler: SchedulerConfig, report: Report) -> Any:
    """Repeat an operation until it finds no scheduler run under way, and return its result."""
    longest = scheduler.max_run_seconds + RUN_MARGIN_SECONDS
    ends = time.monotonic() + longest
    told = False
    while "busy" in (result := control.call(op)):
        if time.monotonic() >= ends:
            raise ModalflowError(
                f"{result['busy']}; it has not ended within {longest:g} s. Wait for it, or stop the "
                f"container of function {names.SCHEDULER_RUN} at Modal, and try again"
            )
        if not told:
            report("waiting", f"for a scheduler run to end, at most {longest:g} s")
            told = True
    return result

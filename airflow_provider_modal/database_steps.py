"""The steps of ``create`` and ``destroy`` that concern the database: done by function ``control``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_modal import deployment, names
from airflow_provider_modal.app import CONTROL_TIMEOUT
from airflow_provider_modal.config import RUN_MARGIN_SECONDS, EnvironmentConfig, SchedulerConfig
from airflow_provider_modal.control.client import ControlClient
from airflow_provider_modal.control.provisioning import MIGRATION_SECONDS
from airflow_provider_modal.db.ownership import TABLE
from airflow_provider_modal.errors import ModalflowError, UnreachableError
from airflow_provider_modal.volume.files import VolumeFiles

log = logging.getLogger(__name__)

RELEASE_SECONDS = 120.0
"""How long ``destroy`` waits for a database to be given up: it may be gone for good."""
_ON_SCHEMA = ("migrate", "drop_schema")

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

    :raises ModalflowError: that failed, or the database is not the environment's own; nothing has been
        removed.
    """
    control = ControlClient(resources, timeout=CONTROL_TIMEOUT)
    _while_no_run(control, "drop_schema", _deployed_scheduler(resources), report)
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


def _deployed_scheduler(resources: names.ResourceNames) -> SchedulerConfig:
    try:
        manifest = deployment.read(VolumeFiles.open(resources))
        return EnvironmentConfig.from_settings(manifest.settings).scheduler
    except UnreachableError:
        raise
    except (ModalflowError, KeyError, TypeError) as error:
        log.info("how long a scheduler run may take is not known, the default is taken: %s", error)
        return SchedulerConfig()


def _while_no_run(control: ControlClient, op: str, scheduler: SchedulerConfig, report: Report) -> Any:
    """Repeat an operation until nothing else works on the schema, and return its result.

    Scheduler runs are waited for; and operations like this one that an interrupted ``create`` or ``destroy``
    has left under way, which go on in the environment.
    """
    began = time.monotonic()
    told: str | None = None
    while "busy" in (result := control.call(op)):
        holder = result.get("holder")
        if holder in _ON_SCHEMA:
            longest = MIGRATION_SECONDS + RUN_MARGIN_SECONDS
            what = f"operation {holder} of an earlier command"
            advice = "It is not to be interrupted: wait for it, and try again"
        else:
            longest = scheduler.max_run_seconds + RUN_MARGIN_SECONDS
            what = "a scheduler run"
            advice = f"Wait for it, or stop the container of {names.SCHEDULER_RUN} at Modal, and try again"
        if time.monotonic() >= began + longest:
            raise ModalflowError(f"{result['busy']}; it has not ended within {longest:g} s. {advice}")
        if told != what:
            report("waiting", f"for {what} to end, at most {longest:g} s")
            told = what
    return result

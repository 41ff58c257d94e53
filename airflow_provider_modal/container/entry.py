"""The functions that Modal calls.

Modal imports this module in every container, and ``app.py`` where the App is built. Importing it where no
role is set starts nothing and imports neither Airflow nor modal. In a container that runs Airflow it
completes the settings and starts the zygote at once, so that it warms up while Modal fetches the first input.

Each function imports what it delegates to when it is called: the tick must not pay for Airflow.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from airflow_provider_modal import airflow_settings, version_compat
from airflow_provider_modal.container.zygote import MARK, Zygote
from airflow_provider_modal.errors import ModalflowError

WARM_UPS = {
    "scheduler": "airflow_provider_modal.scheduler",
    "triggers": "airflow_provider_modal.triggerer",
    "worker": "airflow_provider_modal.worker",
    "control": "airflow_provider_modal.control",
}
"""By role: the package whose adapter for this Airflow has a ``warm_up`` for the zygote."""


def scheduler_tick() -> dict[str, Any]:
    """Run on the environment's schedule: wake the scheduler if anything is due."""
    from airflow_provider_modal.scheduler import tick

    return tick.tick()


def scheduler_run(reason: str = "") -> dict[str, Any]:
    """Do one bounded piece of scheduling.

    :param reason: who asked for it, for the log.
    """
    from airflow_provider_modal.scheduler import holder

    return holder.run(_zygote(), reason)


def run_triggers(reason: str = "") -> dict[str, Any]:
    """Run Airflow's triggerer while there are triggers.

    :param reason: who asked for it, for the log.
    """
    from airflow_provider_modal.triggerer import slices

    return slices.run(_zygote(), reason)


def execute_task(call: dict[str, Any]) -> dict[str, Any]:
    """Run one dispatch of a task.

    :param call: ``wire.TaskCall`` on the wire.
    :return: ``wire.Completion`` on the wire.
    """
    from airflow_provider_modal.worker import dispatch

    return dispatch.execute(_zygote(), call)


def control(op: str, args: dict[str, Any]) -> dict[str, Any]:
    """Run one operation of the command line; see ``control.operations``."""
    from airflow_provider_modal.control import operations

    return operations.handle(_zygote(), op, args)


def ui() -> Any:
    """Return Airflow's own UI and API as an ASGI app, behind a login."""
    from airflow_provider_modal.ui import serving

    return serving.app()


def _zygote() -> Zygote:
    if _started is None:
        raise ModalflowError(
            f"{airflow_settings.ROLE} is {os.environ.get(airflow_settings.ROLE)!r} in this container; deploy "
            "its function again: modalflow create"
        )
    return _started


def _start() -> Zygote | None:
    """Start the zygote of a container that runs Airflow."""
    role = os.environ.get(airflow_settings.ROLE, "")
    # A zygote and its children inherit the role; none of them may start another one.
    if role not in WARM_UPS or MARK in os.environ:
        return None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    airflow_settings.apply()
    return Zygote.start(f"{version_compat.adapter(WARM_UPS[role])}:warm_up")


_started = _start()

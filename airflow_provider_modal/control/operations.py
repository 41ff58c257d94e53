"""What can the command line ask an environment for, and how are answers and failures told?

Every answer is an envelope, so that an error keeps its kind and its sentence on the way through Modal:

    {"ok": True, "result": ...}  or  {"ok": False, "error": {"kind": errors.kind_of, "message": text}}

All operations are idempotent: the function may be started again with the same input.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import airflow_settings, wakeup
from airflow_provider_modal.control import counts, examination, provisioning
from airflow_provider_modal.control.child import run_in_child
from airflow_provider_modal.db.connect import connection_failure, without_password
from airflow_provider_modal.errors import ConfigError, ModalflowError, kind_of

if TYPE_CHECKING:
    from airflow_provider_modal.container.zygote import Zygote

log = logging.getLogger(__name__)


def handle(zygote: Zygote, op: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Run one operation and return its envelope; never raises.

    :param op: its name, such as ``dags.list``.
    :param args: its arguments, by name.
    """
    try:
        operation = OPERATIONS.get(op)
        if operation is None:
            raise ConfigError(
                f"the environment knows no operation {op!r}, it is of another release; redeploy: modalflow "
                "create"
            )
        return {"ok": True, "result": operation(zygote, op, args)}
    except ModalflowError as error:
        return failure(kind_of(error), str(error))
    except Exception as error:
        away = connection_failure(error, _database_url() or "")
        if away is not None:
            return failure(kind_of(away), str(away))
        log.exception("operation %s failed", op)
        return failure("failed", f"operation {op} failed: {type(error).__name__}: {error}")


def failure(kind: str, message: str) -> dict[str, Any]:
    """Return the envelope of a failure; the database's password does not travel with it."""
    return {"ok": False, "error": {"kind": kind, "message": without_password(message, _database_url())}}


def _database_url() -> str | None:
    try:
        return airflow_settings.database_url()
    except KeyError:
        return None


def _and_wake(zygote: Zygote, op: str, args: Mapping[str, Any]) -> Any:
    """Run what gives the scheduler something to do, then wake it."""
    result = run_in_child(zygote, op, args)
    try:
        wakeup.request_run(airflow_settings.deployed_names(), op)
    except Exception as error:
        # Done is done: the schedule finds it.
        log.warning("the scheduler could not be woken: %s: %s", type(error).__name__, error)
    return result


OPERATIONS: dict[str, Callable[[Zygote, str, Mapping[str, Any]], Any]] = {
    "check_database": provisioning.check_database,
    "claim_database": provisioning.claim_database,
    "migrate": provisioning.migrate,
    "drop_schema": provisioning.drop_schema,
    "release_database": provisioning.release_database,
    "counts": counts.counts,
    "examine": examination.examine,
    "dags.list": run_in_child,
    "dags.parsed": run_in_child,
    "dags.trigger": _and_wake,
    "dags.pause": run_in_child,
    "dags.unpause": _and_wake,
    "runs.list": run_in_child,
    "runs.show": run_in_child,
    "usage": run_in_child,
    "xcom.get": run_in_child,
    "clean.judge": run_in_child,
}

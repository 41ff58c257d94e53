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
from airflow_provider_modal.db.connect import application_name, connect, host_of, without_password
from airflow_provider_modal.db.lock import AdvisoryLock
from airflow_provider_modal.errors import ERRORS_BY_KIND, ConfigError, ModalflowError, kind_of

if TYPE_CHECKING:
    from airflow_provider_modal.container.zygote import Zygote

log = logging.getLogger(__name__)

CHILD = "airflow_provider_modal.control.child:run"
LOCK_SECONDS = 60.0
"""How long a migration waits for a scheduler run to end."""
CHILD_SECONDS = 240.0
"""Below the time that the command line waits, so that it gets the answer that it took too long."""


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
        log.exception("operation %s failed", op)
        return failure("failed", f"operation {op} failed: {type(error).__name__}: {error}")


def failure(kind: str, message: str) -> dict[str, Any]:
    """Return the envelope of a failure; the database's password does not travel with it."""
    try:
        url = airflow_settings.database_url()
    except KeyError:
        url = None
    return {"ok": False, "error": {"kind": kind, "message": without_password(message, url)}}


def _check_database(zygote: Zygote, op: str, args: Mapping[str, Any]) -> dict[str, Any]:
    version = _lock("check").check()
    url = airflow_settings.database_url()
    connection = connect(url, application_name=application_name(airflow_settings.deployed_names().env, op))
    try:
        with connection.cursor() as cursor:
            cursor.execute("SHOW max_connections")
            (max_connections,) = cursor.fetchone() or (0,)
    finally:
        connection.close()
    return {"host": host_of(url), "server_version": version, "max_connections": int(max_connections)}


def _in_child(zygote: Zygote, op: str, args: Mapping[str, Any]) -> Any:
    child = zygote.spawn(CHILD, {"op": op, "args": dict(args)})
    outcome = child.wait(CHILD_SECONDS)
    if outcome is None:
        child.kill()
        child.wait(CHILD_SECONDS)
        raise ModalflowError(f"operation {op} did not end within {CHILD_SECONDS:g} s; try again")
    if outcome.error is not None:
        kind = ERRORS_BY_KIND.get(outcome.error_kind or "", ModalflowError)
        told = outcome.error if outcome.error_kind else f"operation {op} failed: {outcome.error}"
        raise kind(told)
    return outcome.result


def _under_lock(zygote: Zygote, op: str, args: Mapping[str, Any]) -> Any:
    """Run what changes the schema while no scheduler works."""
    lock = _lock(op)
    lock.acquire(wait=LOCK_SECONDS)
    with lock:
        return _in_child(zygote, op, args)


def _and_wake(zygote: Zygote, op: str, args: Mapping[str, Any]) -> Any:
    """Run what gives the scheduler something to do, then wake it."""
    result = _in_child(zygote, op, args)
    try:
        wakeup.request_run(airflow_settings.deployed_names(), op)
    except Exception as error:
        # Done is done: the schedule finds it.
        log.warning("the scheduler could not be woken: %s: %s", type(error).__name__, error)
    return result


def _lock(part: str) -> AdvisoryLock:
    env = airflow_settings.deployed_names().env
    return AdvisoryLock(airflow_settings.database_url(), application_name=application_name(env, part))


OPERATIONS: dict[str, Callable[[Zygote, str, Mapping[str, Any]], Any]] = {
    "check_database": _check_database,
    "migrate": _under_lock,
    "drop_schema": _under_lock,
    "dags.list": _in_child,
    "dags.trigger": _and_wake,
    "runs.show": _in_child,
    "xcom.get": _in_child,
}

"""Which function of the zygote's child does an operation, and how does its parent wait for it?"""

from __future__ import annotations

import importlib
import logging
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import airflow_settings
from airflow_provider_modal.child_work import child_of
from airflow_provider_modal.db.connect import connection_failure
from airflow_provider_modal.errors import ERRORS_BY_KIND, ModalflowError

if TYPE_CHECKING:
    from airflow_provider_modal.container.zygote import Zygote

log = logging.getLogger(__name__)

CHILD_SECONDS = 240.0
"""Below the time that the command line waits, so that it gets the answer that it took too long."""

_TARGET = f"{__name__}:run"
_PACKAGE = "airflow_provider_modal.control"
_FUNCTIONS = {
    "migrate": "database:migrate",
    "drop_schema": "database:drop_schema",
    "dags.list": "dags:list_dags",
    "dags.parsed": "dags:parsed",
    "dags.trigger": "dags:trigger",
    "dags.pause": "pausing:pause",
    "dags.unpause": "pausing:unpause",
    "runs.list": "runs:list_runs",
    "runs.show": "runs:show",
    "usage": "usage:usage",
    "xcom.get": "xcoms:get",
    "clean.judge": "retention:judge",
}
_LAST_LINES = 3


def run_in_child(zygote: Zygote, op: str, args: Mapping[str, Any], seconds: float = CHILD_SECONDS) -> Any:
    """Run an operation in a child of the zygote and return its result.

    :param seconds: when to kill the child.
    :raises ModalflowError: it failed, of the class that was raised there, or did not end in time.
    """
    with child_of(zygote, _TARGET, {"op": op, "args": dict(args)}) as child:
        outcome = child.wait(seconds)
    if outcome is None:
        raise ModalflowError(f"operation {op} did not end within {seconds:g} s; try again")
    if outcome.error is not None:
        kind = ERRORS_BY_KIND.get(outcome.error_kind or "", ModalflowError)
        told = outcome.error if outcome.error_kind else f"operation {op} failed: {outcome.error}"
        raise kind(told)
    return outcome.result


def run(op: str, args: dict[str, Any]) -> Any:
    """Run an operation with Airflow and return its result.

    :raises UnreachableError: the database went away.
    :raises ModalflowError: it failed; an unexpected error is told with its type and where it arose.
    """
    module, _, function = _FUNCTIONS[op].partition(":")
    target = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), function)
    try:
        return target(**args)
    except ModalflowError:
        raise
    except Exception as error:
        away = connection_failure(error, airflow_settings.database_url())
        if away is not None:
            raise away from None
        log.exception("operation %s failed", op)
        where = "".join(traceback.format_tb(error.__traceback__)[-1:]).strip().splitlines()[:_LAST_LINES]
        raise ModalflowError(
            f"operation {op} failed: {type(error).__name__}: {error}\n" + "\n".join(where)
        ) from None

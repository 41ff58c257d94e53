"""Which function of the zygote's child does an operation?"""

from __future__ import annotations

import importlib
import logging
import traceback
from typing import Any

from airflow_provider_modal.errors import ModalflowError

log = logging.getLogger(__name__)

_PACKAGE = "airflow_provider_modal.control"
_FUNCTIONS = {
    "migrate": "database:migrate",
    "drop_schema": "database:drop_schema",
    "dags.list": "dags:list_dags",
    "dags.trigger": "dags:trigger",
    "runs.show": "runs:show",
    "xcom.get": "xcoms:get",
}
_LAST_LINES = 3


def run(op: str, args: dict[str, Any]) -> Any:
    """Run an operation with Airflow and return its result.

    :raises ModalflowError: it failed; an unexpected error is told with its type and where it arose.
    """
    module, _, function = _FUNCTIONS[op].partition(":")
    target = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), function)
    try:
        return target(**args)
    except ModalflowError:
        raise
    except Exception as error:
        log.exception("operation %s failed", op)
        where = "".join(traceback.format_tb(error.__traceback__)[-1:]).strip().splitlines()[:_LAST_LINES]
        raise ModalflowError(
            f"operation {op} failed: {type(error).__name__}: {error}\n" + "\n".join(where)
        ) from None

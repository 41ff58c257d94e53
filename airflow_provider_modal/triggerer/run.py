"""The piece of a triggerer that needs Airflow: it runs in a child of the zygote."""

from __future__ import annotations

import importlib
from typing import Any

from airflow_provider_modal import version_compat

RUN = "airflow_provider_modal.triggerer.run:main"


def main(env: str, max_seconds: float, linger_seconds: float, folder: str | None) -> dict[str, Any]:
    """Run triggers until there are none; see the adapter's ``run_triggers``.

    :return: ``stopped``: ``idle`` (no triggers are left), ``budget`` (the time is used up), ``signal``, or
        ``died`` (the process of the triggers did); ``events`` and ``failures`` that were passed on,
        ``job_id``, ``seconds``.
    """
    adapter = importlib.import_module(version_compat.adapter("airflow_provider_modal.triggerer"))
    result: dict[str, Any] = adapter.run_triggers(env, max_seconds, linger_seconds, folder)
    return result

"""What may a task ask of its executor? Its ``queue`` and ``executor_config``, checked when it is queued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_modal import names
from airflow_provider_modal.errors import ConfigError

KEY = "modal"
"""The executor's key in a task's ``executor_config``."""


def check_executor_config(executor_config: Any) -> None:
    """Refuse what a task's ``executor_config`` asks for and can't get.

    :raises ConfigError: it is not a mapping, or has options under ``modal``.
    """
    if executor_config is None:
        return
    if not isinstance(executor_config, Mapping):
        raise ConfigError(
            f"executor_config must be a dict, found {type(executor_config).__name__}; change the task's "
            "definition"
        )
    options = executor_config.get(KEY)
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"executor_config[{KEY!r}] must be a dict of options, found {type(options).__name__}; change the "
            "task's definition"
        )
    if options:
        found = ", ".join(repr(str(name)) for name in options)
        raise ConfigError(
            f"executor_config[{KEY!r}] has {found}, but options of a single task are not available yet; "
            "remove them, and choose resources by the task's queue, which names a worker profile"
        )


def profile_of_queue(queue: str | None, default_queue: str) -> str:
    """Return the worker profile that a task's ``queue`` names; Airflow's default queue is the default one."""
    return names.DEFAULT_PROFILE if queue in (None, "", names.DEFAULT_PROFILE, default_queue) else str(queue)

"""Options and argument types that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from airflow_provider_modal.airflow_settings import ENV_NAME
from airflow_provider_modal.names import ResourceNames

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_AGE = re.compile(r"(\d+)([smhdw])")

Command = TypeVar("Command", bound=Callable[..., Any])


def _resources(ctx: click.Context, param: click.Parameter, value: str) -> ResourceNames:
    return ResourceNames(value)


env_option = click.option(
    "--env",
    "resources",
    metavar="NAME",
    envvar=ENV_NAME,
    show_envvar=True,
    required=True,
    callback=_resources,
    help="The environment.",
)
"""``--env NAME``, or MODALFLOW_ENV; the command's argument ``resources`` is a :class:`ResourceNames`."""

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout (errors as well)."
)
debug_option = click.option("--debug", is_flag=True, expose_value=False, hidden=True)
"""``--debug``, also behind a command; read by ``failures``."""


def environment_command(command: Command) -> Command:
    """Give a command the option ``--env`` of every command that works on an environment."""
    return env_option(debug_option(command))


class Age(click.ParamType):
    """A length of time such as ``30d``; its value is seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        if isinstance(value, float):
            return value
        match = _AGE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a number with a unit, such as 30d, 12h or 0s", param, ctx)
        return float(int(match[1]) * _UNITS[match[2]])


def env_flag(resources: ResourceNames) -> str:
    """Return `` --env NAME`` for a command to be typed, or nothing where MODALFLOW_ENV says it already."""
    return "" if os.environ.get(ENV_NAME) == resources.env else f" --env {resources.env}"

"""Options and argument types that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from airflow_provider_modal.airflow_settings import ENV_NAME
from airflow_provider_modal.names import ResourceNames

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
_debug_option = click.option("--debug", is_flag=True, expose_value=False, hidden=True)


def environment_command(command: Command) -> Command:
    """Give a command the option ``--env`` of every command that works on an environment."""
    return env_option(_debug_option(command))


def env_flag(resources: ResourceNames) -> str:
    """Return `` --env NAME`` for a command to be typed, or nothing where MODALFLOW_ENV says it already."""
    return "" if os.environ.get(ENV_NAME) == resources.env else f" --env {resources.env}"

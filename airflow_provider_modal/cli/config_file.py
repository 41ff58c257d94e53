"""``modalflow config``: a config.yaml to begin with, and whether one is right."""

from __future__ import annotations

from pathlib import Path

import click

from airflow_provider_modal import config as configuration
from airflow_provider_modal.cli import checks
from airflow_provider_modal.cli.options import debug_option, json_option
from airflow_provider_modal.cli.output import note, print_json, print_text


@click.group()
def config() -> None:
    """Write and check the configuration of an environment."""


@config.command()
@json_option
@debug_option
def example(as_json: bool) -> None:
    """Print a config.yaml with all keys, their defaults and what they mean.

    \b
    Example:
      modalflow config example > config.yaml

    As it is, it changes no default, and needs the database's URL in DATABASE_URL.
    """
    from airflow_provider_modal import config_example

    text = config_example.example()
    if as_json:
        print_json({"config": text})
    else:
        print_text(text.rstrip())


@config.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@json_option
@debug_option
def check(path: Path, as_json: bool) -> None:
    """Tell whether a config.yaml is right, without calling Modal or the database.

    Finds what create would refuse before it begins. Whether the database answers, and whether Modal has the
    Secrets and GPUs that are named, shows only there.

    \b
    Example:
      modalflow config check config.yaml

    The exit code is 2 if it is not right. ${VAR} is read from the environment, as by create.
    """
    found = configuration.load(path)
    _refuse(found)
    warnings = [
        f"{finding.check}: {finding.found}; {finding.remedy}"
        for finding in (checks.gpus(found.to_settings()), checks.plan(found.to_settings()))
        if finding.status != "ok"
    ]
    if as_json:
        print_json({"file": str(path), "ok": True, "warnings": warnings, "settings": found.to_settings()})
        return
    for warning in warnings:
        note(f"Warning: {warning}")
    profiles = ", ".join(found.workers)
    print_text(
        f"{path} is right: parallelism {found.executor.parallelism}, a tick every "
        f"{found.scheduler.interval_seconds} s, worker profiles {profiles}"
    )


def _refuse(found: configuration.EnvironmentConfig) -> None:
    """Refuse what create refuses before it makes anything.

    :raises ConfigError: it can't work.
    """
    from airflow_provider_modal import environment_secrets
    from airflow_provider_modal.app import build_app

    environment_secrets.check_fernet_key(found)
    # Describes the App without a connection; any name does.
    build_app(found, "check")

"""``modalflow create`` and ``modalflow destroy``: an environment comes into being, and goes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_modal import config as configuration
from airflow_provider_modal.cli import checks, modal_access
from airflow_provider_modal.cli.failures import interruptible
from airflow_provider_modal.cli.options import env_flag, environment_command, json_option
from airflow_provider_modal.cli.output import Steps, note, print_json, print_text, waiting
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.names import ResourceNames

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_modal.config import EnvironmentConfig
    from airflow_provider_modal.provision import CreateSummary
    from airflow_provider_modal.provision_plan import Plan

_MARKS = {"create": ("+", "green"), "update": ("~", "yellow"), "keep": ("=", "bright_black")}


@click.command()
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    required=True,
    help="The environment's config.yaml.",
)
@click.option(
    "--take-database",
    is_flag=True,
    help="Take a database that holds another Airflow's tables, and migrate them; stop that Airflow first.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@json_option
@environment_command
def create(
    resources: ResourceNames, as_json: bool, config_path: Path, take_database: bool, dry_run: bool
) -> None:
    """Create an environment on Modal, or bring one up to date.

    Makes the Secrets, the Volume and the App with its functions, and Airflow's tables in your database.
    Running it again is safe: it completes what was interrupted, deploys a changed configuration, and keeps
    keys and data.

    \b
    A minimal config.yaml (${VAR} reads the environment):
      database:
        connection_string: ${DATABASE_URL}    # postgresql://user:password@host:5432/airflow

    \b
    Examples:
      modalflow create --env dev --config config.yaml --dry-run
      modalflow create --env dev --config config.yaml

    Needs a Modal token (modal token new) and a PostgreSQL 13+ database that Modal's containers can reach.
    """
    config = configuration.load(config_path)
    modal_access.probe()

    from airflow_provider_modal import provision
    from airflow_provider_modal.provision_plan import plan

    with waiting("looking at what there is"):
        planned = plan(config, resources.env)
    if dry_run and as_json:
        print_json({**asdict(planned), "dry_run": True})
        return
    _show_plan(planned, print_text if dry_run else note)
    if dry_run:
        return
    summary = provision.CreateSummary(resources.env)
    again = f"modalflow create{env_flag(resources)} --config {config_path}"
    try:
        with interruptible(f"what was made is kept; to go on: {again}"):
            with Steps() as steps:
                provision.create(
                    config,
                    resources.env,
                    take_database=take_database,
                    progress=steps,
                    summary=summary,
                )
    except BaseException:
        # The only time that the key can be shown, whatever became of the rest.
        _show_fernet_key(summary)
        raise
    warnings = [*summary.warnings, *_warnings(config, summary)]
    for warning in warnings:
        note(f"Warning: {warning}")
    if as_json:
        print_json(_as_json(summary, warnings))
        return
    _show_fernet_key(summary)
    flag = env_flag(resources)
    print_text(f"Environment {resources.env} is ready ({summary.database}).")
    print_text("Next:")
    print_text(f"  modalflow dags create{flag} --file my_dag.py")
    print_text(f"  modalflow dags list{flag}")
    print_text(f"  modalflow dags trigger{flag} my_dag --wait")


@click.command()
@click.option("--yes", is_flag=True, help="Don't ask for the environment's name.")
@click.option("--keep-volume", is_flag=True, help="Keep the Volume with DAG files and logs.")
@click.option("--drop-schema", is_flag=True, help="Drop Airflow's tables too: runs, connections, variables.")
@json_option
@environment_command
def destroy(resources: ResourceNames, as_json: bool, yes: bool, keep_volume: bool, drop_schema: bool) -> None:
    """Remove an environment from Modal.

    Stops the App, so that running tasks end, and deletes Secrets, state and Volume. The database keeps
    Airflow's tables unless --drop-schema is given, and is free for another environment. What is gone
    already is passed over.

    \b
    Example:
      modalflow destroy --env dev --keep-volume

    The Fernet key goes with the Secret: without a copy of it, connections and variables in the database
    can't be read any more.
    """
    if not yes:
        gone = ["the App, Secrets and state"]
        gone += [] if keep_volume else ["all DAG files and logs on the Volume"]
        gone += ["all of Airflow's tables in the database"] if drop_schema else []
        note(f"This deletes, of environment {resources.env}: {', '.join(gone)}.")
        typed = click.prompt("Type the environment's name to go on", err=True)
        if typed.strip() != resources.env:
            raise ConfigError(
                f"nothing was removed: {typed!r} is not the environment's name {resources.env!r}"
            )
    modal_access.probe()

    from airflow_provider_modal import provision

    again = "modalflow destroy" + env_flag(resources)
    with interruptible(f"the environment is removed in part; to go on: {again}"):
        with Steps() as steps:
            done = provision.destroy(
                resources.env, keep_volume=keep_volume, drop_schema=drop_schema, progress=steps
            )
    if as_json:
        print_json({"env": resources.env, "steps": done})
    else:
        print_text(f"Environment {resources.env} is removed.")


def _show_plan(planned: Plan, tell: Callable[[str], None]) -> None:
    tell(f"Plan for environment {planned.env}:")
    for step in planned.steps:
        mark, colour = _MARKS[step["action"]]
        tell(f"  {click.style(mark, fg=colour)} {step['action']} {step['step']}: {step['detail']}")
    if planned.changes:
        tell("What is otherwise than deployed:")
    for change in planned.changes:
        deployed, now = (
            "nothing" if change[when] is None else str(change[when]) for when in ("deployed", "now")
        )
        tell(f"  {change['what']}: {deployed} -> {now}")


def _warnings(config: EnvironmentConfig, summary: CreateSummary) -> list[str]:
    """Return what will not work well, found by comparing the configuration with the database."""
    parallelism, limit = config.executor.parallelism, summary.max_connections
    if limit is None or checks.enough_connections(parallelism, limit):
        return []
    return [
        f"executor.parallelism is {parallelism}, and every running task holds a connection; the database "
        f"allows {limit} in all (max_connections). {checks.connections_remedy(limit)}"
    ]


def _show_fernet_key(summary: CreateSummary) -> None:
    if summary.fernet_key is None:
        return
    note("A Fernet key was made; it encrypts connections and variables, and can't be read back from Modal.")
    note("Keep it where you keep passwords; to create the environment anew, set keys.fernet_key to it:")
    if summary.steps.get("secrets") != "created":
        note("Modal may not have taken it: if the next create shows another one, that one is right.")
    note(f"\n  {summary.fernet_key}\n")
    summary.fernet_key = None


def _as_json(summary: CreateSummary, warnings: list[str]) -> dict[str, Any]:
    return {
        "env": summary.env,
        "steps": summary.steps,
        "fernet_key": summary.fernet_key,
        "app_url": summary.app_url,
        "database": summary.database,
        "manifest": asdict(summary.manifest) if summary.manifest else None,
        "warnings": warnings,
    }

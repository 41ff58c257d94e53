"""``modalflow runs``: what became of DAG runs."""

from __future__ import annotations

import click

from airflow_provider_modal.cli import modal_access
from airflow_provider_modal.cli.options import environment_command, json_option
from airflow_provider_modal.cli.output import print_json, print_table, waiting
from airflow_provider_modal.names import ResourceNames


@click.group()
def runs() -> None:
    """See what became of DAG runs."""


@runs.command()
@click.argument("dag_id")
@click.argument("run_id")
@json_option
@environment_command
def show(resources: ResourceNames, as_json: bool, dag_id: str, run_id: str) -> None:
    """Show a run with its tasks: state, tries, times, container.

    \b
    Example:
      modalflow runs show --env dev my_dag manual__20250102T030405_5f3a

    Needs a created environment. The exit code says whether the command worked, not whether the run did.
    """
    from airflow_provider_modal.cli.run_view import view

    access = modal_access.connect(resources)
    with waiting("asking for the run"):
        run = access.control.call("runs.show", dag_id=dag_id, run_id=run_id)
    if as_json:
        print_json(run)
    else:
        print_table(view(run))

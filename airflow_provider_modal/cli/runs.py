"""``modalflow runs``: what became of DAG runs."""

from __future__ import annotations

import click

from airflow_provider_modal.cli import modal_access
from airflow_provider_modal.cli.options import env_flag, environment_command, json_option
from airflow_provider_modal.cli.output import note, print_json, print_table, waiting
from airflow_provider_modal.names import ResourceNames


@click.group()
def runs() -> None:
    """See what became of DAG runs."""


RUN_STATES = ("queued", "running", "success", "failed")
"""Airflow's states of a DAG run."""


@runs.command("list")
@click.option("--dag-id", metavar="DAG_ID", help="Only runs of this DAG.")
@click.option(
    "--state",
    "states",
    type=click.Choice(RUN_STATES),
    multiple=True,
    help="Only runs in this state; may be given several times.",
)
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=25, show_default=True, help="How many at most."
)
@json_option
@environment_command
def list_(
    resources: ResourceNames, as_json: bool, dag_id: str | None, states: tuple[str, ...], limit: int
) -> None:
    """List DAG runs, the newest first.

    \b
    Examples:
      modalflow runs list --env dev
      modalflow runs list --env dev --dag-id my_dag --state failed --json

    Needs a created environment. To see the tasks of a run: runs show.
    """
    from airflow_provider_modal.cli.run_view import view_runs

    access = modal_access.connect(resources)
    with waiting("asking for the runs"):
        listed = access.control.call("runs.list", dag_id=dag_id, states=list(states), limit=limit)
    if as_json:
        print_json(listed)
        return
    if not listed["runs"]:
        note("No such runs." if dag_id or states else "No runs yet; to start one: modalflow dags trigger")
        return
    print_table(view_runs(listed["runs"]))
    if listed["more"]:
        note(f"There are more; to see them: --limit {limit * 4}")
    newest = listed["runs"][0]
    note(f"To see one: modalflow runs show{env_flag(resources)} {newest['dag_id']} {newest['run_id']}")


@runs.command()
@click.argument("dag_id")
@click.argument("run_id")
@json_option
@environment_command
def show(resources: ResourceNames, as_json: bool, dag_id: str, run_id: str) -> None:
    """Show a run with its tasks: state, tries, times, container, and when each ran.

    \b
    Example:
      modalflow runs show --env dev my_dag manual__20250102T030405_5f3a

    The bars show when a task waited (light) and ran (full), over the time of the whole run.

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

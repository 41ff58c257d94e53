"""``modalflow dags pause`` and ``unpause``: DAGs stop being scheduled, and go on."""

from __future__ import annotations

import click

from airflow_provider_modal.cli import dag_arrival, modal_access
from airflow_provider_modal.cli.options import environment_command, json_option
from airflow_provider_modal.cli.output import print_json, print_text, waiting
from airflow_provider_modal.names import ResourceNames


@click.command()
@click.argument("dag_ids", metavar="DAG_ID...", nargs=-1, required=True)
@json_option
@environment_command
def pause(resources: ResourceNames, as_json: bool, dag_ids: tuple[str, ...]) -> None:
    """Pause DAGs: no new run begins, and no further task of the runs that there are.

    What runs goes on to its end. One that is paused already is fine.

    \b
    Example:
      modalflow dags pause --env dev my_dag another_dag

    Needs DAGs in the environment (see: dags list); if one is missing, none is changed.
    """
    _set(resources, as_json, "dags.pause", dag_ids)


@click.command()
@click.argument("dag_ids", metavar="DAG_ID...", nargs=-1, required=True)
@json_option
@environment_command
def unpause(resources: ResourceNames, as_json: bool, dag_ids: tuple[str, ...]) -> None:
    """Let paused DAGs go on; the scheduler is woken for what they missed.

    Whether runs of the time in between are made up for is the DAG's catchup. One that is not paused is fine.

    \b
    Example:
      modalflow dags unpause --env dev my_dag

    Needs DAGs in the environment (see: dags list); if one is missing, none is changed.
    """
    _set(resources, as_json, "dags.unpause", dag_ids)


def _set(resources: ResourceNames, as_json: bool, op: str, dag_ids: tuple[str, ...]) -> None:
    access = modal_access.connect(resources)
    with waiting("asking the environment"):
        done = dag_arrival.when_parsed(access, lambda: access.control.call(op, dag_ids=list(dag_ids)))
    if as_json:
        print_json(done)
        return
    for dag in done["dags"]:
        state = "paused" if dag["paused"] else "active"
        print_text(f"{dag['dag_id']}: {state}" + ("" if dag["changed"] else " (unchanged)"))

"""``modalflow logs``: what tasks printed, read from the environment's Volume."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

import click

from airflow_provider_modal.cli import modal_access
from airflow_provider_modal.cli.options import environment_command
from airflow_provider_modal.cli.output import note, waiting
from airflow_provider_modal.errors import NotFoundError
from airflow_provider_modal.names import ResourceNames

if TYPE_CHECKING:
    from airflow_provider_modal.cli.modal_access import Access


@click.command()
@click.argument("dag_id")
@click.argument("run_id")
@click.argument("task_id", required=False)
@click.option("--map-index", type=int, metavar="N", help="Only this one of a mapped task.  [default: all]")
@click.option(
    "--try",
    "try_number",
    type=click.IntRange(min=1),
    metavar="N",
    help="This try of each task.  [default: the last]",
)
@environment_command
def logs(
    resources: ResourceNames,
    dag_id: str,
    run_id: str,
    task_id: str | None,
    map_index: int | None,
    try_number: int | None,
) -> None:
    """Show the logs of a run with its callbacks, or of one of its tasks.

    \b
    Examples:
      modalflow logs --env dev my_dag manual__20250102T030405_5f3a
      modalflow logs --env dev my_dag manual__20250102T030405_5f3a extract --try 1

    Needs a created environment. A running task's log is a few seconds old.
    """
    from airflow_provider_modal.log import attempt, reader, segments

    access = modal_access.connect(resources)
    with waiting("looking for logs"):
        found = [
            (task, index, reader.attempts(access.files, dag_id, run_id, task, index))
            for task, index in reader.tasks(access.files, dag_id, run_id)
            if task_id in (None, task) and map_index in (None, index)
        ]
    chosen = [
        (task, index, try_number or tries[-1], tries)
        for task, index, tries in found
        if tries and (try_number is None or try_number in tries)
    ]
    callbacks = []
    if task_id is None and map_index is None and try_number is None:
        callbacks = attempt.others(access.files, segments.callbacks_folder(dag_id, run_id))
    if not chosen and not callbacks:
        if found and try_number is not None:
            tries_of = ", ".join(f"{_name(task, index)}: {tries}" for task, index, tries in found)
            raise NotFoundError(f"there is no log of try {try_number}; tries with a log: {tries_of}")
        _explain_absence(access, dag_id, run_id, task_id, map_index)
    for position, (task, index, number, tries) in enumerate(chosen):
        if len(chosen) + len(callbacks) > 1:
            _header(f"{_name(task, index)}, try {number}", first=position == 0)
        for line in reader.read(access.files, dag_id, run_id, task, index, number):
            click.echo(line)
        if len(tries) > 1 and len(chosen) == 1 and not callbacks:
            # Before the note on stderr, also where both go to the same file.
            sys.stdout.flush()
            note(f"(try {number} of tries {', '.join(map(str, tries))})")
    for position, callback in enumerate(callbacks):
        _header(f"callback {callback.log.rpartition('/')[2]}", first=position == 0 and not chosen)
        for line in callback.lines(access.files.read_many):
            for text in reader.readable(line):
                click.echo(text)


def _header(what: str, *, first: bool) -> None:
    if not first:
        click.echo()
    click.secho(f"=== {what} ===", bold=True)


def _name(task_id: str, map_index: int) -> str:
    return task_id if map_index < 0 else f"{task_id}[{map_index}]"


def _explain_absence(
    access: Access, dag_id: str, run_id: str, task_id: str | None, map_index: int | None
) -> NoReturn:
    """Say why there is no log: no such DAG, run or task, or it has not started.

    :raises NotFoundError: always.
    """
    from airflow_provider_modal.cli.run_view import task_name

    with waiting("looking for the run"):
        run = access.control.call("runs.show", dag_id=dag_id, run_id=run_id)
    tasks = [task for task in run["tasks"] if task_id in (None, task["task_id"])]
    if not tasks:
        known = ", ".join(sorted({task["task_id"] for task in run["tasks"]})) or "none yet"
        raise NotFoundError(f"run {run_id} of {dag_id} has no task {task_id}; it has: {known}")
    wanted = [task for task in tasks if map_index in (None, task["map_index"])]
    if not wanted:
        indexes = ", ".join(str(task["map_index"]) for task in tasks)
        raise NotFoundError(f"task {task_id} has no map index {map_index}; it has: {indexes}")
    states = ", ".join(f"{task_name(task)} is {task['state'] or 'not scheduled yet'}" for task in wanted)
    raise NotFoundError(f"there is no log yet of run {run_id} of {dag_id}: {states}")

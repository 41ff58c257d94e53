"""``modalflow dags``: DAG files on the environment's Volume, and the DAGs that they define."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from airflow_provider_modal import names
from airflow_provider_modal.cli import dag_arrival, dag_file, dags_pause, dags_sync, modal_access
from airflow_provider_modal.cli.failures import interruptible
from airflow_provider_modal.cli.options import env_flag, environment_command, json_option
from airflow_provider_modal.cli.output import note, print_json, print_table, print_text, table, waiting
from airflow_provider_modal.cli.waking import wake
from airflow_provider_modal.config import SchedulerConfig
from airflow_provider_modal.errors import ERRORS_BY_KIND, ConfigError, ModalflowError, NotFoundError, kind_of
from airflow_provider_modal.names import ResourceNames

if TYPE_CHECKING:
    from airflow_provider_modal.cli.modal_access import Access

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group()
def dags() -> None:
    """Upload, list, trigger and pause DAGs."""


dags.add_command(dags_pause.pause)
dags.add_command(dags_pause.unpause)
dags.add_command(dags_sync.sync)


def _upload_options(command: Command) -> Command:
    file = click.option(
        "--file",
        "path",
        metavar="FILE",
        type=click.Path(path_type=Path),
        required=True,
        help="A Python file that defines at least one DAG.",
    )
    check = click.option(
        "--check/--no-check",
        default=True,
        show_default=True,
        help="Parse the file here first, under the time limit.",
    )
    limit = click.option(
        "--timeout-seconds",
        type=click.FloatRange(min=0, min_open=True),
        help="The check's time limit.  [default: the environment's scheduler.parse_timeout_seconds]",
    )
    return file(check(limit(command)))


@dags.command()
@_upload_options
@json_option
@environment_command
def create(
    resources: ResourceNames, as_json: bool, path: Path, check: bool, timeout_seconds: float | None
) -> None:
    """Upload a new DAG file.

    The file is parsed here first, in a process of its own and under the environment's time limit, then put
    into the folder dags/ of the environment's Volume; the scheduler parses it within seconds. The same file
    again is fine; another content under a name that exists is refused (see: dags update).

    \b
    Example:
      modalflow dags create --env dev --file my_dag.py

    Needs a created environment, and for the check Airflow and what the file imports installed here.
    """
    content = dag_file.read(path)
    access = modal_access.connect(resources)
    stored = _stored(access, path.name)
    if stored not in (None, content):
        raise ConfigError(
            f"the environment {resources.env} has a {path.name} with another content; to replace it: "
            f"modalflow dags update{env_flag(resources)} --file {path}"
        )
    outcome = "unchanged" if stored is not None else "created"
    _upload(access, path, content, outcome, as_json, check, timeout_seconds)


@dags.command()
@_upload_options
@json_option
@environment_command
def update(
    resources: ResourceNames, as_json: bool, path: Path, check: bool, timeout_seconds: float | None
) -> None:
    """Replace a DAG file by a new version.

    Runs that are under way go on with the version that they began with.

    \b
    Example:
      modalflow dags update --env dev --file my_dag.py

    Needs a file of that name in the environment (see: dags create).
    """
    content = dag_file.read(path)
    access = modal_access.connect(resources)
    stored = _stored(access, path.name)
    if stored is None:
        raise NotFoundError(
            f"the environment {resources.env} has no {path.name}; to add it: modalflow dags create"
            f"{env_flag(resources)} --file {path}"
        )
    outcome = "unchanged" if stored == content else "updated"
    _upload(access, path, content, outcome, as_json, check, timeout_seconds)


@dags.command()
@click.option("--file", "name", metavar="NAME", required=True, help="The file's name, as dags list shows it.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@json_option
@environment_command
def delete(resources: ResourceNames, as_json: bool, name: str, yes: bool) -> None:
    """Remove a DAG file; its DAGs are no longer scheduled, their history stays.

    \b
    Example:
      modalflow dags delete --env dev --file my_dag.py
    """
    dag_file.require_name(name)
    access = modal_access.connect(resources)
    if _stored(access, name) is None:
        files = sorted(entry.path for entry in access.files.list(names.DAGS_FOLDER) if entry.is_file)
        have = ", ".join(Path(file).name for file in files) or "none"
        raise NotFoundError(f"the environment {resources.env} has no DAG file {name}; it has: {have}")
    if not yes:
        click.confirm(f"Remove {name} from the environment {resources.env}?", abort=True, err=True)
    access.files.remove(f"{names.DAGS_FOLDER}/{name}")
    wake(resources, f"DAG file {name} deleted")
    if as_json:
        print_json({"file": name, "outcome": "deleted"})
    else:
        print_text(f"{name}: deleted")


@dags.command("list")
@json_option
@environment_command
def list_(resources: ResourceNames, as_json: bool) -> None:
    """List DAGs with their files, and import errors.

    \b
    Example:
      modalflow dags list --env dev --json | jq -r '.dags[].dag_id'

    Needs a created environment. A file that was uploaded a moment ago appears once it is parsed.
    """
    access = modal_access.connect(resources)
    with waiting("asking for the DAGs"):
        listed = access.control.call("dags.list")
    if as_json:
        print_json(listed)
        return
    if listed["dags"]:
        columns = {
            "DAG": "dag_id",
            "file": "file",
            "schedule": "schedule",
            "paused": "paused",
            "stale": "stale",
            "last parsed": "last_parsed",
            "next run": "next_run",
        }
        print_table(
            table(list(columns), ([dag.get(key) for key in columns.values()] for dag in listed["dags"]))
        )
    elif not listed["import_errors"]:
        note(f"No DAGs yet; to add some: modalflow dags create{env_flag(resources)} --file my_dag.py")
    for error in listed["import_errors"]:
        click.secho(f"Import error in {error['file']} ({error['at']}):", fg="red")
        print_text(str(error["error"]).rstrip())


@dags.command()
@click.argument("dag_id")
@click.option(
    "--run-id", metavar="ID", help="The run's id; the same id again does nothing.  [default: made up]"
)
@click.option("--conf", metavar="JSON", help="The run's configuration, a JSON object.")
@click.option("--wait", is_flag=True, help="Follow the run to its end; exit code 0 only if it succeeds.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="Wait at most so long; the run goes on.  [default: no limit]",
)
@json_option
@environment_command
def trigger(
    resources: ResourceNames,
    as_json: bool,
    dag_id: str,
    run_id: str | None,
    conf: str | None,
    wait: bool,
    timeout: float | None,
) -> None:
    """Start a run of a DAG.

    \b
    Examples:
      modalflow dags trigger --env dev my_dag
      modalflow dags trigger --env dev my_dag --conf '{"day": "2025-01-01"}' --wait

    Needs a DAG in the environment (see: dags list). One whose file was uploaded a moment ago is waited for
    until the scheduler has parsed it, for a minute at most.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait")
    arguments: dict[str, Any] = {"dag_id": dag_id, "run_id": run_id or _new_run_id()}
    if conf is not None:
        arguments["conf"] = _conf(conf)
    access = modal_access.connect(resources)

    def started() -> Any:
        with waiting("starting the run"):
            return access.control.call("dags.trigger", **arguments)

    triggered = dag_arrival.when_parsed(access, started)
    if wait:
        _wait(access, dag_id, triggered, timeout, as_json)
    elif as_json:
        print_json({"dag_id": dag_id, "run_id": triggered["run_id"], "created": triggered["created"]})
    else:
        print_text(triggered["run_id"])
        what = "Started" if triggered["created"] else "It was started before"
        note(f"{what}; to see it: modalflow runs show{env_flag(resources)} {dag_id} {triggered['run_id']}")
        if triggered["paused"]:
            unpause = f"modalflow dags unpause{env_flag(resources)} {dag_id}"
            note(f"DAG {dag_id} is paused, and so is its run; to let it go on: {unpause}")


def _wait(
    access: Access, dag_id: str, triggered: Mapping[str, Any], timeout: float | None, as_json: bool
) -> None:
    """Follow a run and end with its result; a run that did not succeed is exit code 1."""
    from airflow_provider_modal.cli.run_view import FINISHED, UNSUCCESSFUL, follow, task_name, view
    from airflow_provider_modal.control.client import ANSWER_SECONDS, ControlClient

    run_id = triggered["run_id"]
    flag = env_flag(access.resources)
    goes_on = f"the run goes on; to see it: modalflow runs show{flag} {dag_id} {run_id}"

    def fetch(seconds: float) -> Any:
        control = ControlClient(access.resources, timeout=seconds)
        return control.call("runs.show", dag_id=dag_id, run_id=run_id)

    if triggered["paused"] and fetch(ANSWER_SECONDS)["state"] not in FINISHED:
        # Airflow's scheduler leaves its runs alone: there may be nothing to wait for, for ever.
        raise ModalflowError(
            f"DAG {dag_id} is paused, and so is run {run_id}. To let it go on: modalflow dags unpause{flag} "
            f"{dag_id}; to wait for it then: modalflow dags trigger{flag} {dag_id} --run-id {run_id} --wait"
        )
    with interruptible(goes_on):
        try:
            run = follow(fetch, timeout)
        except NotFoundError:
            raise
        except ModalflowError as error:
            raise ERRORS_BY_KIND[kind_of(error)](f"{error}\n{goes_on}") from error
    if as_json:
        print_json(run)
    else:
        print_table(view(run))
    if run["state"] != "success":
        failed = [task for task in run["tasks"] if task["state"] in UNSUCCESSFUL]
        example = f" {failed[0]['task_id']}" if failed else ""
        note(
            f"The run {run['state']}: {', '.join(map(task_name, failed)) or 'no task failed'}. To read why: "
            f"modalflow logs{flag} {dag_id} {run_id}{example}"
        )
        raise click.exceptions.Exit(1)


def _upload(
    access: Access,
    path: Path,
    content: bytes,
    outcome: str,
    as_json: bool,
    check: bool,
    timeout_seconds: float | None,
) -> None:
    checked = None
    if check:
        with waiting(f"parsing {path.name}"):
            checked = dag_file.check(path, timeout_seconds or _parse_timeout(access))
    if outcome != "unchanged":
        access.files.write(f"{names.DAGS_FOLDER}/{path.name}", content)
    # Also for a file that is there: a former command may have been interrupted before it got here.
    woken = wake(access.resources, f"DAG file {path.name} {outcome}")
    if as_json:
        dag_ids = checked.dag_ids if checked else None
        print_json({"file": path.name, "outcome": outcome, "dag_ids": dag_ids, "scheduler_woken": woken})
        return
    defined = f" (DAGs: {', '.join(checked.dag_ids)})" if checked else " (not checked)"
    print_text(f"{path.name}: {outcome}{defined}")
    if checked and checked.beside:
        note(
            f"It imports {', '.join(checked.beside)} from its own folder; to upload all of it: "
            f"modalflow dags sync{env_flag(access.resources)} {path.parent}"
        )
    if woken:
        note(f"The scheduler parses it now; to see it: modalflow dags list{env_flag(access.resources)}")


def _stored(access: Access, name: str) -> bytes | None:
    """Return the content of a DAG file in the environment, None if there is none."""
    with waiting("reading the environment's Volume"):
        try:
            # Not into a Volume that is only kept, or not created to the end.
            _ = access.manifest
            return access.files.read(f"{names.DAGS_FOLDER}/{name}")
        except FileNotFoundError:
            return None


def _parse_timeout(access: Access) -> float:
    # Read by name: the environment may be of another release.
    deployed = access.manifest.settings.get("scheduler", {}).get("parse_timeout_seconds")
    return float(deployed or SchedulerConfig.parse_timeout_seconds)


def _conf(text: str) -> dict[str, Any]:
    try:
        conf = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--conf") from None
    if not isinstance(conf, dict):
        raise click.BadParameter("must be a JSON object, such as '{\"day\": 1}'", param_hint="--conf")
    return conf


def _new_run_id() -> str:
    """Return a run id that no other command makes, so that a trigger may be repeated safely."""
    return f"manual__{datetime.now(timezone.utc):%Y%m%dT%H%M%S}_{secrets.token_hex(3)}"

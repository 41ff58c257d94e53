"""``modalflow dags sync``: a folder of this computer becomes the environment's DAG tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_modal.cli import modal_access
from airflow_provider_modal.cli.failures import Interrupted
from airflow_provider_modal.cli.options import env_flag, environment_command, json_option
from airflow_provider_modal.cli.output import note, print_json, print_text, size_text, waiting
from airflow_provider_modal.cli.waking import wake
from airflow_provider_modal.errors import ConfigError, ModalflowError

if TYPE_CHECKING:
    from airflow_provider_modal.cli.local_tree import LocalTree
    from airflow_provider_modal.cli.modal_access import Access
    from airflow_provider_modal.names import ResourceNames
    from airflow_provider_modal.volume.dag_sync import LocalFile, Plan

LOCK_WAIT_SECONDS = 20.0
"""How long to wait for another ``dags sync``, ``clean``, or the scheduler, which has the lock for moments."""
LINES = 50
"""How many paths of a kind are shown; --json has all."""
LARGE_BYTES = 500 * 1024 * 1024
"""From which on it is said that every container downloads the whole tree."""


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--delete/--no-delete",
    default=True,
    show_default=True,
    help="Remove from the environment what DIR does not have.",
)
@click.option("--yes", is_flag=True, help="Don't ask before files are removed.")
@click.option("--force", is_flag=True, help="Also if nothing that is there now would stay.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option(
    "--exclude",
    metavar="PATTERN",
    multiple=True,
    help="Leave these files alone, here and there: a name, or a path below dags/, with * and ?; repeatable.",
)
@json_option
@environment_command
def sync(
    resources: ResourceNames,
    as_json: bool,
    folder: Path,
    delete: bool,
    yes: bool,
    force: bool,
    dry_run: bool,
    exclude: tuple[str, ...],
) -> None:
    """Make the environment's DAG files the same as those in DIR.

    Shows first what is added (+), changed (~) and removed (-), then uploads only what differs and switches to
    the new files all at once: no DAG is ever parsed with half of them, and runs that are under way go on with
    the files that they began with. Interrupted, the files before stay. Then the scheduler is woken.

    If DIR has a folder dags/, it is a project: that folder is uploaded, together with plugins/ (Airflow's
    plugins), include/ (modules and files for your DAGs), requirements.txt and .airflowignore beside it.
    Otherwise DIR itself has the DAGs, and maybe these, too. Modules in all three can be imported; Airflow
    looks for no DAGs in plugins/ and include/.

    Hidden files and folders (.git, .env), __pycache__, node_modules and virtual environments are left out;
    .airflowignore is Airflow's own list of files without DAGs, which are uploaded like all others. Links are
    followed within DIR.

    \b
    Examples:
      modalflow dags sync --env dev . --dry-run
      modalflow dags sync --env dev ~/project --yes
      modalflow dags sync --env dev dags --no-delete --exclude 'tests/*'
    """
    from airflow_provider_modal.cli import local_tree

    if not folder.is_dir():
        what = "does not exist"
        if folder.exists():
            what = "is not a folder; to upload one file: modalflow dags create"
        raise ConfigError(f"{folder} {what}")
    left = _Left(f"modalflow dags sync{env_flag(resources)}")
    with left.told():
        found = local_tree.scan(folder, exclude)
        for place, why in found.skipped.items():
            note(f"Left out: {place} ({why})")
        local = _read(found)
        access = modal_access.connect(resources)
        # Not into a Volume that is only kept, or not created to the end.
        _ = access.manifest
        planned = _plan(access, local, delete, exclude)
        if not as_json:
            _show(planned)
        if planned.empties and not force:
            raise ConfigError(
                f"this would remove all {len(planned.removed)} DAG files of the environment {resources.env}; "
                f"{folder} has none of them: is it the right folder? If so, give --force"
            )
        if dry_run:
            _finish(planned, "planned", None, None, as_json)
            return
        if planned.removed and not yes:
            click.confirm(
                f"Remove {_files(len(planned.removed))} from the environment {resources.env}?",
                abort=True,
                err=True,
            )
        version = None
        if not planned.empty:
            version = _carry_out(access, local, planned, delete, exclude, left)
    # Also without a change: a former command may have been interrupted before it got here.
    woken = wake(resources, "DAG files synced" if version else "DAG files unchanged")
    _finish(planned, "synced" if version else "unchanged", version, woken, as_json)
    if woken and version and not as_json:
        note(f"The scheduler parses them now; to see it: modalflow dags list{env_flag(resources)}")


def _read(found: LocalTree) -> dict[str, LocalFile]:
    from airflow_provider_modal.volume.dag_sync import LocalFile

    with waiting(f"reading {_files(len(found.files))}"):
        return {path: LocalFile.of(place) for path, place in found.files.items()}


def _plan(access: Access, local: Mapping[str, LocalFile], delete: bool, exclude: tuple[str, ...]) -> Plan:
    from airflow_provider_modal.volume import dag_versions

    with waiting("reading the environment's Volume"):
        present = dag_versions.contents(access.files)
    return _difference(present, local, delete, exclude)


def _difference(
    present: Mapping[str, str], local: Mapping[str, LocalFile], delete: bool, exclude: tuple[str, ...]
) -> Plan:
    from airflow_provider_modal.cli.local_tree import is_left_out
    from airflow_provider_modal.volume import dag_sync

    return dag_sync.plan(present, local, delete=delete, spared=lambda path: is_left_out(path, exclude))


def _carry_out(
    access: Access,
    local: Mapping[str, LocalFile],
    shown: Plan,
    delete: bool,
    exclude: tuple[str, ...],
    left: _Left,
) -> str:
    """Do what was shown; return the new version's digest."""
    from airflow_provider_modal.volume import dag_sync
    from airflow_provider_modal.volume.dag_lock import DagTreeLock

    progress = _Progress(2 * (len(shown.added) + len(shown.changed)) + len(shown.removed))
    with (
        DagTreeLock.open(access.resources).hold("modalflow dags sync", LOCK_WAIT_SECONDS) as lease,
        waiting("uploading"),
    ):
        base = dag_sync.settle(access.files)
        planned = _difference(base.files, local, delete, exclude)
        if planned != shown:
            raise ModalflowError(
                f"the environment's DAG files changed meanwhile; nothing was done, try again: {left.again}"
            )
        version = dag_sync.carry_out(
            access.files,
            lease,
            planned,
            local,
            largest=base.largest,
            switched=left.switched,
            done=progress,
        )
    return version.digest


class _Left:
    """What is left by an interruption.

    :param again: the command that does the rest.
    """

    def __init__(self, again: str) -> None:
        self.again = again
        self._text = f"nothing was changed; to do it: {again}"

    def switched(self) -> None:
        """Note that the new files count from now on."""
        self._text = (
            "the new files count already, and the scheduler completes the change; to see to it: " + self.again
        )

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turn Ctrl-C into an end that says so."""
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted: {self._text}") from None


class _Progress:
    """Tells on stderr how far a long upload is."""

    def __init__(self, steps: int) -> None:
        self._steps = max(steps, 1)
        self._done = 0
        self._told = 0

    def __call__(self, number: int) -> None:
        self._done += number
        percent = min(100 * self._done // self._steps, 100)
        if percent >= self._told + 10 and self._steps > 2 * LINES:
            self._told = percent
            note(f"{percent} % done")


def _show(planned: Plan) -> None:
    for mark, colour, paths in (
        ("+", "green", [f"{path} ({size_text(size)})" for path, size in planned.added.items()]),
        ("~", "yellow", [f"{path} ({size_text(size)})" for path, size in planned.changed.items()]),
        ("-", "red", planned.removed),
    ):
        for path in paths[:LINES]:
            click.echo(f"{click.style(mark, fg=colour)} {path}")
        if len(paths) > LINES:
            click.echo(f"{click.style(mark, fg=colour)} ... and {len(paths) - LINES} more")
    kept = f", {len(planned.kept)} kept that DIR does not have" if planned.kept else ""
    print_text(
        f"{len(planned.added)} added, {len(planned.changed)} changed, {len(planned.removed)} removed, "
        f"{planned.unchanged} unchanged{kept}; {size_text(planned.size)} to upload"
    )
    if planned.size > LARGE_BYTES:
        note("Every new container downloads all DAG files before its first task: keep large data elsewhere.")


def _finish(planned: Plan, outcome: str, version: str | None, woken: bool | None, as_json: bool) -> None:
    if as_json:
        print_json({"outcome": outcome, "version": version, **_described(planned), "scheduler_woken": woken})
    elif version:
        print_text(f"{outcome}: DAG version {version[:12]}")
    else:
        print_text("nothing was done" if outcome == "planned" else outcome)


def _described(planned: Plan) -> dict[str, Any]:
    return {
        "added": [{"path": path, "bytes": size} for path, size in planned.added.items()],
        "changed": [{"path": path, "bytes": size} for path, size in planned.changed.items()],
        "removed": planned.removed,
        "kept": planned.kept,
        "unchanged": planned.unchanged,
        "bytes": planned.size,
    }


def _files(number: int) -> str:
    return f"{number} file{'' if number == 1 else 's'}"

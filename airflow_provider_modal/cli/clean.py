"""``modalflow clean``: removes from the Volume what nobody needs any more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_modal.cli import modal_access
from airflow_provider_modal.cli.failures import interruptible
from airflow_provider_modal.cli.options import Age, env_flag, environment_command, json_option
from airflow_provider_modal.cli.output import (
    note,
    print_json,
    print_table,
    print_text,
    size_text,
    table,
    waiting,
)
from airflow_provider_modal.errors import ModalflowError

if TYPE_CHECKING:
    from airflow_provider_modal.cli.modal_access import Access
    from airflow_provider_modal.names import ResourceNames
    from airflow_provider_modal.retention.found import Found, Kind

WHAT = ("logs", "xcom", "versions", "venvs")
"""Kinds of data (``retention.kinds`` has what they do)."""


class Kinds(click.ParamType):
    """Names of kinds of data, with commas between them."""

    name = "kinds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the names, each once, in the order in which they are cleaned."""
        if isinstance(value, tuple):
            return value
        wanted = [name.strip() for name in str(value).split(",")]
        unknown = [name for name in wanted if name not in WHAT]
        if unknown:
            self.fail(f"{', '.join(map(repr, unknown))}: there are {', '.join(WHAT)}", param, ctx)
        return tuple(name for name in WHAT if name in wanted)


@click.command()
@click.option(
    "--what",
    metavar="KINDS",
    type=Kinds(),
    default=",".join(WHAT),
    show_default=True,
    help="What to clean, with commas in between.",
)
@click.option(
    "--older-than",
    metavar="AGE",
    type=Age(),
    default="30d",
    show_default=True,
    help="How long ago a run must have ended, or something must have been used: 30d, 12h.",
)
@click.option(
    "--keep-versions",
    metavar="N",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="DAG versions that stay whatever their age: the latest N.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@json_option
@environment_command
def clean(
    resources: ResourceNames,
    as_json: bool,
    what: tuple[str, ...],
    older_than: float,
    keep_versions: int,
    dry_run: bool,
    yes: bool,
) -> None:
    """Remove from the environment's Volume what nobody needs any more.

    Shows first what may go and how much that is, and asks. What a run under way needs is never removed.

    \b
    logs      of runs that the database has no more, or that ended long ago
    xcom      values of runs that the database has no more
    versions  DAG versions that no run under way, no DAG and no recent run uses
    venvs     virtualenvs that no task has used lately

    The database itself is Airflow's own business: `airflow db clean` removes old runs from it, and the next
    clean what they left on the Volume. Safe to repeat, also after an interruption.

    \b
    Examples:
      modalflow clean --env dev --dry-run
      modalflow clean --env dev --what logs --older-than 7d --yes
    """
    access = modal_access.connect(resources)
    # Not a Volume that is only kept, or not created to the end.
    _ = access.manifest
    kinds = _kinds(access, what, older_than, keep_versions)
    problems: list[str] = []
    found = {kind.name: _find(kind, problems) for kind in kinds}
    if not as_json:
        _show(found)
    removed: dict[str, list[Found]] = {}
    if any(found.values()) and not dry_run:
        if not yes:
            click.confirm(f"Remove this from the environment {resources.env}?", abort=True, err=True)
        again = f"what was not removed yet is still there; to go on: modalflow clean{env_flag(resources)}"
        with interruptible(again):
            removed = {kind.name: _remove(kind, found[kind.name], problems) for kind in kinds}
    if as_json:
        print_json(_described(found, removed, problems, dry_run))
    elif removed:
        every = [item for items in removed.values() for item in items]
        print_text(f"removed {len(every)}, {size_text(_bytes(every))} freed")
    elif dry_run and any(found.values()):
        print_text("nothing was done")
    for problem in problems:
        note(f"Not complete: {problem}")
    if problems:
        raise click.exceptions.Exit(1)


def _kinds(access: Access, what: Sequence[str], older_than: float, keep_versions: int) -> list[Kind]:
    from airflow_provider_modal.retention.found import Policy
    from airflow_provider_modal.retention.kinds import KINDS, Environment
    from airflow_provider_modal.volume.dag_lock import DagTreeLock

    def ask(**arguments: Any) -> Any:
        return access.control.call("clean.judge", **arguments)

    policy = Policy(older_than, keep_versions, time.time())
    environment = Environment(access.files, ask, policy, DagTreeLock.open(access.resources))
    return [KINDS[name](environment) for name in what]


def _find(kind: Kind, problems: list[str]) -> list[Found]:
    """Return what may go; what can't be looked through is a problem, not the end."""
    found: list[Found] = []
    try:
        with waiting(f"looking for {kind.name} that may go"):
            found.extend(kind.find())
    except ModalflowError as error:
        problems.append(f"{kind.name}: {error}")
    return found


def _remove(kind: Kind, found: Sequence[Found], problems: list[str]) -> list[Found]:
    if not found:
        return []
    try:
        with waiting(f"removing {kind.name}"):
            return kind.remove(found)
    except ModalflowError as error:
        problems.append(f"{kind.name}: {error}")
        return []


def _show(found: dict[str, list[Found]]) -> None:
    rows = []
    for name, items in found.items():
        reasons = dict.fromkeys(item.because for item in items)
        for reason in list(reasons)[:5]:
            same = [item for item in items if item.because == reason]
            rows.append((name, len(same), size_text(_bytes(same)), reason))
        rest = [item for item in items if item.because in list(reasons)[5:]]
        if rest:
            rows.append((name, len(rest), size_text(_bytes(rest)), "..."))
    if not rows:
        print_text("nothing to remove")
        return
    print_table(table(["what", "number", "size", "why"], rows))


def _described(
    found: dict[str, list[Found]], removed: dict[str, list[Found]], problems: list[str], dry_run: bool
) -> dict[str, Any]:
    done = {name: {item.path for item in items} for name, items in removed.items()}
    return {
        "outcome": "planned" if dry_run else "cleaned" if any(removed.values()) else "unchanged",
        "found_bytes": sum(_bytes(items) for items in found.values()),
        "freed_bytes": sum(_bytes(items) for items in removed.values()),
        "kinds": {
            name: [
                {
                    "path": item.path,
                    "bytes": item.size,
                    "because": item.because,
                    "removed": item.path in done.get(name, ()),
                }
                for item in items
            ]
            for name, items in found.items()
        },
        "problems": problems,
    }


def _bytes(items: Sequence[Found]) -> int:
    return sum(item.size for item in items)

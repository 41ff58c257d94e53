"""``modalflow status``: how is an environment, and what is wrong with it?

What the scheduler does is read from the Volume and the state Dict, so that it is told also while the database
is away; what there is to do only the database knows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_modal import names
from airflow_provider_modal.cli import checks, modal_access
from airflow_provider_modal.cli.options import env_flag, environment_command, json_option
from airflow_provider_modal.cli.output import print_json, print_table, print_text, seconds, table, waiting
from airflow_provider_modal.config import SchedulerConfig
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.names import ResourceNames

if TYPE_CHECKING:
    from airflow_provider_modal.deployment import Manifest
    from airflow_provider_modal.scheduler.history import Record
    from airflow_provider_modal.triggerer.health import Health

COUNT_SECONDS = 90.0
"""How long to wait for the counts: a container's cold start."""
LATE_SECONDS = 120.0
"""How much later than its interval says a tick may be: a container's cold start, and a tick's own time."""


@click.command()
@click.option("--offline", is_flag=True, help="Don't ask the database, which starts a container.")
@json_option
@environment_command
def status(resources: ResourceNames, as_json: bool, offline: bool) -> None:
    """Show an environment on one screen: what it does, what waits, what failed, and what is wrong.

    A tick looks on schedule whether anything is due; a run does it. While nothing goes on, ticks leave the
    database alone for up to ten minutes. After three failed runs in a row they start runs less and less
    often, every ten minutes at least, until one succeeds. So does the triggerer of deferred tasks.

    \b
    Example:
      modalflow status --env dev

    Needs a created environment; while the database is away, all but the counts is told. The exit code tells
    of the command, not of the scheduler.
    """
    access = modal_access.connect(resources)
    with waiting("asking for the scheduler's state"):
        found = scheduler_state(access)
    with waiting("asking the database"):
        counts, not_counted = (None, "not asked") if offline else _counted(access)
    found = {
        **found,
        "counts": counts,
        "not_counted": not_counted,
        "wrong": wrong(found, counts, not_counted if not offline else None, checks.release(access.manifest)),
    }
    if as_json:
        print_json(found)
        return
    print_text(f"Environment {found['env']}: {found['state']}. {found['detail']}")
    print_text(
        f"Airflow {found['airflow']}, deployed {found['deployed_at']}, a tick every {found['interval']} s"
    )
    tick = found["last_tick"]
    if tick:
        what = ", ".join(tick["due"]) or "nothing was due"
        print_text(f"Last look: {tick['at']}: {what}" + (f" ({tick['held']})" if tick["held"] else ""))
        if tick["sleep_until"]:
            print_text(f"The database is left alone until {tick['sleep_until']}")
        if tick["next_at"]:
            print_text(f"Next by the clock: {tick['next_at']}")
    if counts:
        print_text(workload(counts))
    columns = ["began", "took", "outcome", "because", "message"]
    rows = (
        [run["began"], seconds(run["seconds"]), *(run[key] for key in columns[2:])] for run in found["runs"]
    )
    if found["runs"]:
        print_table(table(columns, rows))
    for sentence in found["wrong"]:
        print_text(f"{click.style('!', fg='yellow')} {sentence}")


def workload(counts: Mapping[str, Any]) -> str:
    """Return a line about what there is to do and what failed."""

    def told(states: Mapping[str, int]) -> str:
        return ", ".join(f"{number} {state}" for state, number in states.items()) or "none under way"

    return (
        f"Tasks: {told(counts['tasks'])}; runs: {told(counts['runs'])}; failed within a day: "
        f"{counts['failed_tasks']} tasks, {counts['failed_runs']} runs"
    )


def wrong(
    state: Mapping[str, Any],
    counts: Mapping[str, Any] | None,
    not_counted: str | None,
    release: checks.Finding,
) -> list[str]:
    """Return what is wrong, each with what to do; empty if nothing is.

    :param state: what :func:`scheduler_state` returns.
    :param counts: what the control operation ``counts`` returns, if it could.
    :param not_counted: why it could not.
    :param release: how what is deployed compares with what is installed here.
    """
    flag = env_flag(ResourceNames(state["env"]))
    found = []
    if state["state"] in ("stopped", "failing"):
        found.append(f"{state['detail']} To look for why: modalflow doctor{flag}")
    if not_counted:
        found.append(f"{not_counted}. To look for why: modalflow doctor{flag}")
    if release.status != "ok":
        found.append(f"{release.found}: {release.remedy}")
    if counts and counts["import_errors"]:
        found.append(
            f"DAG files with import errors: {counts['import_errors']}; to see them: modalflow dags list{flag}"
        )
    if counts and counts["failed_runs"]:
        found.append(
            f"Runs that failed within a day: {counts['failed_runs']}; to see them: modalflow runs list{flag} "
            "--state failed"
        )
    return found


def _counted(access: modal_access.Access) -> tuple[dict[str, Any] | None, str | None]:
    """Return the counts, or why there are none."""
    from airflow_provider_modal.control.client import ControlClient

    try:
        counts: dict[str, Any] = ControlClient(access.resources, timeout=COUNT_SECONDS).call("counts")
    except ModalflowError as error:
        return None, str(error).rstrip(".")
    return counts, None


def scheduler_state(access: modal_access.Access) -> dict[str, Any]:
    """Return what the Volume and the state Dict tell: ``state``, ``detail``, the last tick, the last runs."""
    import modal

    from airflow_provider_modal.scheduler import history
    from airflow_provider_modal.triggerer import health

    manifest = access.manifest
    interval = interval_of(manifest)
    state: modal.Dict = modal.Dict.from_name(access.resources.state_dict)
    records = history.read(state)
    tick = state.get(names.SLEEP_UNTIL_KEY) or {}
    slowed_until = history.slowed_until(records, interval)
    triggerer = health.read(state)
    word, detail = _judged(tick, records, interval, slowed_until, triggerer, time.time())
    return {
        "env": access.resources.env,
        "state": word,
        "detail": detail,
        "airflow": manifest.airflow,
        "deployed_at": manifest.deployed_at,
        "interval": interval,
        "last_tick": {
            "at": _iso(tick.get("at")),
            "due": tick.get("due", []),
            "started": tick.get("started", False),
            "held": tick.get("held"),
            "error": tick.get("error"),
            "next_at": _iso(tick.get("next_at")),
            "sleep_until": _iso(tick.get("sleep_until")),
        }
        if tick
        else None,
        "failures_in_a_row": history.failures(records),
        "slowed_until": _iso(slowed_until),
        "triggerer": {
            "failures_in_a_row": triggerer.failures,
            "message": triggerer.message,
            "held_until": _iso(triggerer.held_until),
        },
        "runs": [
            {
                "began": _iso(record.began),
                "seconds": None if record.ended is None else round(record.ended - record.began, 1),
                "outcome": record.outcome,
                "because": record.reason,
                "message": record.message,
            }
            for record in reversed(records)
        ],
    }


def interval_of(manifest: Manifest) -> int:
    """Return the seconds between two ticks of what is deployed."""
    # Read by name: the environment may be of another release.
    deployed = manifest.settings.get("scheduler", {}).get("interval_seconds")
    return int(deployed or SchedulerConfig.interval_seconds)


def _judged(
    tick: dict[str, Any],
    records: list[Record],
    interval: float,
    slowed_until: float | None,
    triggerer: Health,
    now: float,
) -> tuple[str, str]:
    """Return a word and a sentence about the scheduler, or about the triggerer if only that fails."""
    from airflow_provider_modal.scheduler import history

    failed = history.failures(records)
    looked_at = max(tick.get("at") or 0.0, tick.get("sleep_until") or 0.0)
    if not tick:
        return "starting", "No tick has looked yet; the first one comes within its interval."
    if now > looked_at + interval + LATE_SECONDS:
        return "stopped", (
            f"No tick has looked since {_iso(tick.get('at'))}: is the App stopped, or do ticks fail? See: "
            "modal app list, modal app logs"
        )
    if failed:
        ended = [record for record in records if record.outcome not in (None, history.LOCKED)]
        sentence = f"The last {failed} runs failed: {ended[-1].message or ended[-1].outcome}."
        if slowed_until is not None:
            sentence += f" The schedule has slowed down; the next try is at {_iso(max(slowed_until, now))}."
        return "failing", sentence
    if tick.get("error"):
        return "failing", f"The last tick failed: {tick['error']}."
    if triggerer.failures:
        sentence = (
            f"Deferred tasks wait: the last {triggerer.failures} triggerers failed: {triggerer.message}."
        )
        if triggerer.held_until is not None:
            sentence += f" The next one starts at {_iso(max(triggerer.held_until, now))}."
        return "failing", sentence
    if history.is_open(records):
        return "working", "A run is at work."
    if tick.get("sleep_until") and now < tick["sleep_until"]:
        return "asleep", "Nothing is due and nothing is under way."
    return "idle", "Nothing is due." if not tick.get("due") else "A run was asked for."


def _iso(moment: float | None) -> str | None:
    if not moment:
        return None
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds")

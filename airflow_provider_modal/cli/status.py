"""``modalflow status``: does the scheduler work, what did it do last, and if it does not, why?

Read from the environment's Volume and state Dict, so that it also answers while the database is away.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_modal import names
from airflow_provider_modal.cli import modal_access
from airflow_provider_modal.cli.options import environment_command, json_option
from airflow_provider_modal.cli.output import print_json, print_table, print_text, seconds, table, waiting
from airflow_provider_modal.config import SchedulerConfig
from airflow_provider_modal.names import ResourceNames

if TYPE_CHECKING:
    from airflow_provider_modal.deployment import Manifest
    from airflow_provider_modal.scheduler.history import Record
    from airflow_provider_modal.triggerer.health import Health

LATE_SECONDS = 120.0
"""How much later than its interval says a tick may be: a container's cold start, and a tick's own time."""


@click.command()
@json_option
@environment_command
def status(resources: ResourceNames, as_json: bool) -> None:
    """Show whether the scheduler works: last tick, last runs, and what is wrong.

    A tick looks on schedule whether anything is due; a run does it. While nothing goes on, ticks leave the
    database alone for up to ten minutes. After three failed runs in a row they start runs less and less
    often, every ten minutes at least, until one succeeds. So does the triggerer of deferred tasks.

    \b
    Example:
      modalflow status --env dev

    Needs a created environment. The exit code tells of the command, not of the scheduler.
    """
    access = modal_access.connect(resources)
    with waiting("asking for the scheduler's state"):
        found = scheduler_state(access)
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
    columns = ["began", "took", "outcome", "because", "message"]
    rows = (
        [run["began"], seconds(run["seconds"]), *(run[key] for key in columns[2:])] for run in found["runs"]
    )
    if found["runs"]:
        print_table(table(columns, rows))


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

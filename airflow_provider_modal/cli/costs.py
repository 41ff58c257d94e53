"""``modalflow costs``: what did tasks cost, about?"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_modal import prices
from airflow_provider_modal.cli import modal_access
from airflow_provider_modal.cli.options import Age, environment_command, json_option
from airflow_provider_modal.cli.output import (
    brief_time,
    note,
    print_json,
    print_table,
    print_text,
    seconds,
    table,
    waiting,
)
from airflow_provider_modal.cli.status import interval_of
from airflow_provider_modal.names import ResourceNames

if TYPE_CHECKING:
    from airflow_provider_modal.scheduler.history import Record

TICK_SECONDS = 5.0
"""How long a container lives for one tick: its start, a look at the state, Modal's idle time of 2 s."""
LEAST_OBSERVED_SECONDS = 3600.0
"""How long the last runs must reach back for more to be told from them: work comes in bursts."""
_KEYS = {"dag": ("dag_id",), "run": ("dag_id", "run_id"), "task": ("dag_id", "task_id")}
_HEADINGS = {"dag_id": "DAG", "run_id": "run", "task_id": "task"}


@click.command()
@click.option(
    "--since", metavar="TIME", type=Age(), default="7d", show_default=True, help="How far back: 12h, 7d, 4w."
)
@click.option(
    "--by",
    type=click.Choice(list(_KEYS)),
    default="dag",
    show_default=True,
    help="What to add up: all runs of a DAG, each run, or each task of a DAG over its runs.",
)
@json_option
@environment_command
def costs(resources: ResourceNames, as_json: bool, since: float, by: str) -> None:
    """Estimate what tasks cost, in dollars.

    \b
    A try of a task is estimated at its seconds x (
        cores x $0.0000131  +  GiB x $0.00000222  +  GPUs x the GPU's price )
    Cores and memory are those reserved, at least 0.125 and 128 MiB.

    These are estimates at Modal's list prices (https://modal.com/pricing). They leave out the start of
    containers and their idle time, what a task uses beyond what it reserves, regions, storage, credits and
    discounts; the time for which a task is deferred counts as if it ran. What Modal bills is told by: modal
    billing report.

    \b
    Examples:
      modalflow costs --env dev
      modalflow costs --env dev --since 24h --by task --json

    The scheduler's share is extrapolated from its last runs. Needs a created environment.
    """
    access = modal_access.connect(resources)
    with waiting("asking for what ran"):
        told = access.control.call("usage", seconds=since, by=by)
        scheduler = _scheduler(access, since)
    rows = priced(told["usage"], _KEYS[by])
    known = [row["dollars"] for row in rows if row["dollars"] is not None]
    result = {
        "since": told["since"],
        "until": told["until"],
        "by": by,
        "costs": rows,
        "tasks_dollars": round(sum(known), 6),
        "scheduler": scheduler,
        "estimate": True,
        "prices": {"source": prices.SOURCE, "as_of": prices.AS_OF},
    }
    if as_json:
        print_json(result)
        return
    _show(result)


def priced(usage: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return usage with its price, added up by ``keys``, the dearest first.

    :param usage: rows as the control operation ``usage`` returns them.
    :return: rows with ``keys``, ``tries``, ``seconds`` and ``dollars``: None if the price of a GPU that they
        used is not known.
    """
    added: dict[tuple[Any, ...], dict[str, Any]] = defaultdict(
        lambda: {"tries": 0, "seconds": 0.0, "dollars": 0.0}
    )
    for row in usage:
        sum_ = added[tuple(row[key] for key in keys)]
        sum_["tries"] += row["tries"]
        sum_["seconds"] += row["seconds"]
        rate = prices.rate(row["cores"], row["mib"], row["gpu"])
        known = rate is not None and sum_["dollars"] is not None
        sum_["dollars"] = sum_["dollars"] + row["seconds"] * rate if known and rate is not None else None
    rows = [{**dict(zip(keys, key, strict=True)), **sums} for key, sums in added.items()]
    for row in rows:
        row["seconds"] = round(row["seconds"], 3)
        row["dollars"] = None if row["dollars"] is None else round(row["dollars"], 6)
    # What can't be told may be the dearest of all.
    return sorted(rows, key=lambda row: -(float("inf") if row["dollars"] is None else row["dollars"]))


def scheduler_share(
    records: Sequence[Record], interval: float, window: float, now: float
) -> dict[str, Any] | None:
    """Return what scheduler and ticks cost in a window, if they went on as in the last runs.

    :param records: the last runs, oldest first.
    :param interval: seconds between two ticks.
    :param window: seconds.
    :return: ``dollars``: for the window, or None where the last runs say too little about it;
        ``observed_dollars`` in the ``observed_seconds`` that they cover; ``basis``, a few words. None if no
        run is on record.
    """
    from airflow_provider_modal.app import SCHEDULER_SIZE, TICK_SIZE, scheduler_scaledown_window

    ended = [record for record in records if record.ended is not None]
    if not ended:
        return None
    over = max(now - ended[0].began, 1.0)
    worked = sum(record.ended - record.began for record in ended if record.ended is not None)
    # The container stays for a while after each run, and for no longer than until the next one.
    alive = min(worked + len(ended) * scheduler_scaledown_window(int(interval)), over)
    run_rate, tick_rate = prices.rate(*SCHEDULER_SIZE) or 0.0, prices.rate(*TICK_SIZE) or 0.0
    per_second = alive / over * run_rate + min(TICK_SECONDS / interval, 1.0) * tick_rate
    enough = over >= min(LEAST_OBSERVED_SECONDS, window)
    return {
        "dollars": round(per_second * window, 6) if enough else None,
        "observed_dollars": round(per_second * over, 6),
        "observed_seconds": round(over, 1),
        "basis": f"the last {len(ended)} runs, and a tick every {interval:g} s",
    }


def _scheduler(access: modal_access.Access, window: float) -> dict[str, Any] | None:
    import modal

    from airflow_provider_modal.scheduler import history

    state: modal.Dict = modal.Dict.from_name(access.resources.state_dict)
    return scheduler_share(history.read(state), interval_of(access.manifest), window, time.time())


def _show(result: Mapping[str, Any]) -> None:
    keys = _KEYS[result["by"]]
    if result["costs"]:
        headings = [*(_HEADINGS[key] for key in keys), "tries", "ran", "about $"]
        print_table(
            table(
                headings,
                (
                    [
                        *(row[key] for key in keys),
                        row["tries"],
                        seconds(row["seconds"]),
                        _dollars(row["dollars"]),
                    ]
                    for row in result["costs"]
                ),
            )
        )
    else:
        note("No task has run in this time.")
    unknown = sum(row["dollars"] is None for row in result["costs"])
    more = f", without {unknown} rows whose GPU has no list price" if unknown else ""
    print_text(f"Tasks: about ${_dollars(result['tasks_dollars'])}{more}")
    scheduler = result["scheduler"]
    if scheduler:
        print_text(f"Scheduler: {_share(scheduler)}")
    else:
        print_text("Scheduler: not known, no run of it is on record")
    note(
        f"Estimates at Modal's list prices of {prices.AS_OF} ({prices.SOURCE}), since "
        f"{brief_time(result['since'])}; see costs --help. What Modal bills: modal billing report"
    )


def _share(scheduler: Mapping[str, Any]) -> str:
    observed, basis = seconds(scheduler["observed_seconds"]), scheduler["basis"]
    if scheduler["dollars"] is not None:
        return f"about ${_dollars(scheduler['dollars'])}, extrapolated from {observed}: {basis}"
    told = f"about ${_dollars(scheduler['observed_dollars'])} in the last {observed}: {basis}"
    return f"{told}; that is too short to tell more"


def _dollars(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"

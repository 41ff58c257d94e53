"""What do tasks and the scheduler cost, about?"""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from airflow_provider_modal import prices
from airflow_provider_modal.cli.costs import priced, scheduler_share
from airflow_provider_modal.cli.main import cli
from airflow_provider_modal.scheduler.history import Record


def row(dag: str, seconds: float, gpu: str | None = None, **more: Any) -> dict[str, Any]:
    return {"dag_id": dag, "tries": 1, "seconds": seconds, "cores": 2, "mib": 4096, "gpu": gpu, **more}


def test_seconds_times_resources_are_added_up_the_dearest_first() -> None:
    rows = priced([row("a", 10), row("b", 100), row("a", 5, "T4:2", tries=3)], ["dag_id"])
    plain = 2 * 0.0000131 + 4 * 0.00000222
    assert [each["dag_id"] for each in rows] == ["b", "a"]
    assert rows[0]["dollars"] == pytest.approx(100 * plain, abs=1e-6)
    assert rows[1]["dollars"] == pytest.approx(15 * plain + 5 * 2 * 0.000164, abs=1e-6)
    assert (rows[1]["tries"], rows[1]["seconds"]) == (4, 15)


def test_a_price_that_is_not_known_is_none_and_comes_first() -> None:
    rows = priced([row("a", 1), row("b", 1, "ANY"), row("b", 1)], ["dag_id"])
    assert [(each["dag_id"], each["dollars"] is None) for each in rows] == [("b", True), ("a", False)]


def test_the_schedulers_share_follows_from_its_last_runs() -> None:
    runs = [Record("1", began=0.0, ended=10.0, outcome="done"), Record("2", began=500.0, ended=510.0)]
    share = scheduler_share(runs, interval=60, window=86_400, now=10_000.0)
    assert share is not None
    # Two runs of 10 s with 30 s of idle time each in 10000 s, and 5 s of a tick every minute.
    alive = 86_400 * 80 / 10_000 * (0.0000131 + 0.00000222)
    ticks = 86_400 * 5 / 60 * 0.125 * (0.0000131 + 0.00000222)
    assert share["dollars"] == pytest.approx(alive + ticks, abs=1e-6)
    assert "last 2 runs" in share["basis"]


def test_a_minute_says_nothing_about_a_week() -> None:
    run = [Record("1", began=0.0, ended=10.0, outcome="done")]
    week = scheduler_share(run, interval=60, window=7 * 86_400, now=60.0)
    assert week is not None and week["dollars"] is None
    assert (week["observed_seconds"], week["observed_dollars"] > 0) == (60.0, True)
    minute = scheduler_share(run, interval=60, window=30, now=60.0)
    assert minute is not None and minute["dollars"] == pytest.approx(week["observed_dollars"] / 2, abs=1e-6)


def test_nothing_is_said_of_a_scheduler_that_never_ran() -> None:
    assert scheduler_share([], 60, 3600, 0.0) is None
    assert scheduler_share([Record("1", began=0.0)], 60, 3600, 10.0) is None


def test_help_has_the_formula_with_the_prices_that_are_used() -> None:
    told = CliRunner().invoke(cli, ["costs", "--help"]).stdout
    for price in (prices.CORE_SECOND, prices.GIB_SECOND):
        assert f"${price:.8f}".rstrip("0") in told
    assert f"{prices.LEAST_CORES} and {prices.LEAST_MIB} MiB" in told

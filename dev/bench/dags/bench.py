"""Tasks that do nothing: one after the other, and all at once."""

from __future__ import annotations

from datetime import datetime, timezone

from airflow.sdk import chain, dag, task

WIDE = int("WIDE")
LONG = int("LONG")
WARM = 16


@task
def nothing(number: int = 0) -> None:
    """Do nothing."""


@dag(schedule=None, start_date=datetime(2025, 1, 1, tzinfo=timezone.utc), catchup=False, max_active_tasks=100)
def wide() -> None:
    """Throughput."""
    nothing.expand(number=list(range(WIDE)))


@dag(schedule=None, start_date=datetime(2025, 1, 1, tzinfo=timezone.utc), catchup=False)
def warm() -> None:
    """So many at once as workers can do."""
    nothing.expand(number=list(range(WARM)))


@dag(schedule=None, start_date=datetime(2025, 1, 1, tzinfo=timezone.utc), catchup=False)
def long() -> None:
    """Latency: no task has to wait for another one's worker."""
    chain(*[nothing.override(task_id=f"nothing_{number:03}")(number) for number in range(LONG)])


wide()
warm()
long()

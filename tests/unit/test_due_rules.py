"""Do the rules that the due-check has in Python agree with Airflow's?"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from airflow_provider_modal.scheduler.due_rules import assets_suffice, retry_at

ENDED = datetime(2024, 5, 1, 12, 0, 0, tzinfo=timezone.utc)
ROW = {
    "dag_id": "d",
    "task_id": "t",
    "try_number": 3,
    "delay": None,
    "ended": ENDED.timestamp(),
    "logical_date": "2024-01-01 00:00:00.000000",
    "task": {},
    "defaults": {"retry_delay": 300.0},
    "known": True,
}
TASKS: list[dict[str, Any]] = [
    {},
    {"retry_delay": 7.0},
    {"retry_delay": 7.0, "retry_exponential_backoff": 2.0},
    {"retry_delay": 7.0, "retry_exponential_backoff": 3.5},
    {"retry_delay": 70.0, "retry_exponential_backoff": 2.0, "max_retry_delay": 100.0},
    {"retry_delay": 7000.0, "retry_exponential_backoff": 9.0},
    {"retry_delay": 0.0, "retry_exponential_backoff": 2.0},
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("date", [None, datetime(2024, 1, 1), datetime(2024, 1, 1, 3, 4, 5, 120000)])
def test_retries_are_due_when_airflow_says(task: dict[str, Any], date: datetime | None) -> None:
    from types import SimpleNamespace

    from airflow.models.taskinstance import TaskInstance

    aware = date and date.replace(tzinfo=timezone.utc)

    def delta(name: str, default: Any) -> Any:
        return timedelta(seconds=task[name]) if name in task else default

    ti = SimpleNamespace(
        retry_delay_override=None,
        end_date=ENDED,
        dag_id="d",
        task_id="t",
        logical_date=aware,
        try_number=3,
        task=SimpleNamespace(
            retry_delay=delta("retry_delay", timedelta(seconds=300)),
            retry_exponential_backoff=task.get("retry_exponential_backoff", 0),
            max_retry_delay=delta("max_retry_delay", None),
        ),
    )
    expected = TaskInstance.next_retry_datetime(ti)  # type: ignore[arg-type]
    row = {**ROW, "task": task, "logical_date": date and date.strftime("%Y-%m-%d %H:%M:%S.%f")}
    assert retry_at(row) == pytest.approx(expected.timestamp())


def test_a_retry_is_found_out_wherever_the_delay_is_kept() -> None:
    mapped = {"partial_kwargs": {"retry_delay": {"__type": "timedelta", "__var": 70.0}}}
    assert retry_at({**ROW, "task": mapped}) == ROW["ended"] + 70  # type: ignore[operator]
    assert retry_at({**ROW, "delay": "12.5", "known": False}) == ROW["ended"] + 12.5  # type: ignore[operator]
    assert retry_at({**ROW, "defaults": None}) == ROW["ended"] + 300  # type: ignore[operator]


@pytest.mark.parametrize("unknown", [{"known": False}, {"ended": None}, {"task": {"retry_delay": "soon"}}])
def test_a_retry_that_can_t_be_told_is_unknown(unknown: dict[str, Any]) -> None:
    assert retry_at({**ROW, **unknown}) is None


def test_assets_suffice_as_the_schedule_says() -> None:
    def asset(number: int) -> dict[str, Any]:
        return {"asset": {"id": number, "uri": str(number), "name": str(number), "group": "asset"}}

    both_or_third = {"any": [{"all": [asset(1), asset(2)]}, asset(3)]}
    assert not assets_suffice(both_or_third, [1])
    assert assets_suffice(both_or_third, [1, 2])
    assert assets_suffice(both_or_third, [3])
    assert assets_suffice({"all": [asset(1), {"alias": {"name": "x"}}]}, [1]), "Airflow resolves it"
    assert assets_suffice({"something": "new"}, [])

"""What does `modalflow status` say of the work that there is, and of what is wrong?"""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_modal.cli.checks import Finding
from airflow_provider_modal.cli.status import workload, wrong

COUNTS: dict[str, Any] = {
    "tasks": {"queued": 3, "running": 2},
    "runs": {},
    "failed_tasks": 4,
    "failed_runs": 0,
    "import_errors": 0,
}
AS_HERE = Finding("release", "ok", "as here")
IDLE = {"env": "dev", "state": "idle", "detail": "Nothing is due."}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODALFLOW_ENV", raising=False)


def test_work_is_one_line() -> None:
    assert workload(COUNTS) == (
        "Tasks: 3 queued, 2 running; runs: none under way; failed within a day: 4 tasks, 0 runs"
    )


def test_nothing_is_wrong_with_an_idle_environment() -> None:
    assert wrong(IDLE, COUNTS, None, AS_HERE) == []


def test_everything_that_is_wrong_is_told_with_what_to_do() -> None:
    failing = {"env": "dev", "state": "failing", "detail": "The last 3 runs failed: no memory."}
    other = Finding("release", "warn", "deployed: 0.1; here: 0.2", "modalflow create")
    bad = {**COUNTS, "failed_runs": 2, "import_errors": 1}
    told = wrong(failing, bad, None, other)
    assert told == [
        "The last 3 runs failed: no memory. To look for why: modalflow doctor --env dev",
        "deployed: 0.1; here: 0.2: modalflow create",
        "DAG files with import errors: 1; to see them: modalflow dags list --env dev",
        "Runs that failed within a day: 2; to see them: modalflow runs list --env dev --state failed",
    ]
    assert wrong(IDLE, None, "the database is away", AS_HERE) == [
        "the database is away. To look for why: modalflow doctor --env dev"
    ]

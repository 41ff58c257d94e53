"""What does ``create`` wait for before it changes the schema, and what does it say?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_modal import database_steps
from airflow_provider_modal.config import RUN_MARGIN_SECONDS, SchedulerConfig
from airflow_provider_modal.errors import ModalflowError

SERVER = {"schema_current": False}
MIGRATION = {"busy": "operation migrate holds the lock", "holder": "migrate"}
RUN = {"busy": "another process holds the lock", "holder": None}


class Control:
    """Stands for the environment, whose answers follow each other."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self._answers: Iterator[dict[str, Any]] = iter(answers)

    def call(self, op: str, /, **args: Any) -> Any:
        return next(self._answers)


def test_what_is_waited_for_is_told_once() -> None:
    told: list[tuple[str, ...]] = []
    control = Control(MIGRATION, MIGRATION, RUN, RUN, {"changed": True, "revision": "r"})
    database_steps.migrate(
        control,  # type: ignore[arg-type]
        SERVER,
        SchedulerConfig(max_run_seconds=20),
        lambda *status: told.append(status),
    )
    assert told == [
        ("waiting", "for operation migrate of an earlier command to end, at most 1020 s"),
        ("waiting", "for a scheduler run to end, at most 200 s"),
        ("updated", "revision r"),
    ]


@pytest.mark.parametrize(
    ("answer", "advice"),
    [(MIGRATION, "It is not to be interrupted"), (RUN, "stop the container of scheduler_run at Modal")],
)
def test_what_does_not_end_is_told_with_what_to_do(
    answer: dict[str, Any], advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_steps, "MIGRATION_SECONDS", -RUN_MARGIN_SECONDS)
    scheduler = SchedulerConfig(max_run_seconds=-RUN_MARGIN_SECONDS)
    with pytest.raises(ModalflowError, match=advice) as refused:
        database_steps.migrate(Control(answer), SERVER, scheduler, lambda *status: None)  # type: ignore[arg-type]
    assert str(refused.value).startswith(answer["busy"])

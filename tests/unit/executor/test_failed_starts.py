"""When does a waiting call's function have containers that end while they start?"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone

import pytest

from airflow_provider_modal.executors.starts import SAID_MOST, Starts

TRACEBACK = """Traceback (most recent call last):
  File "/root/app.py", line 1, in <module>
    import pandas
ModuleNotFoundError: No module named 'pandas'
"""


@dataclass(frozen=True)
class Entry:
    """An entry of a function's log."""

    message: str
    at: float = 100.0
    source: str = "stderr"
    context_ids: list[str] = field(default_factory=lambda: ["ta-1"])

    @property
    def timestamp(self) -> datetime:
        return datetime.fromtimestamp(self.at, timezone.utc)


def failure(*entries: Entry, since: float = 50.0) -> str | None:
    return Starts(1, 0, entries).failure(since)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([Entry(TRACEBACK)], "ModuleNotFoundError: No module named 'pandas'"),
        ([Entry("airflow.exceptions.AirflowConfigException: no such option")], "AirflowConfigException"),
        ([Entry("Container ta-1 failed to start: out of memory", source="system")], "out of memory"),
        (
            # What the container said itself tells more than Modal's word about its end.
            [Entry(TRACEBACK), Entry("Container ta-1 crashed", 101, "system")],
            "No module named 'pandas'",
        ),
        ([Entry("OSError: first"), Entry("OSError: second", 101, context_ids=["ta-2"])], "OSError: second"),
    ],
)
def test_containers_that_end_before_they_take_a_call(entries: list[Entry], told: str) -> None:
    assert told in str(failure(*entries))


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [Entry("execution API warmed up in 2.1 s"), Entry("INFO pandas is not imported in advance: Error")],
        [Entry("Container ta-1 started", source="system")],
        [Entry(TRACEBACK, at=40.0)],  # of a former deployment
        [Entry(TRACEBACK, context_ids=["fc-1", "in-1", "ta-1"])],  # of user code
        [Entry("hello", 90.0, context_ids=["fc-1", "in-1", "ta-1"]), Entry(TRACEBACK)],  # at its end
        [Entry(TRACEBACK), Entry("hello", 110.0, context_ids=["fc-1", "in-1", "ta-2"])],  # once, in passing
    ],
)
def test_what_is_no_evidence_counts_as_waiting_for_capacity(entries: list[Entry]) -> None:
    assert failure(*entries) is None


def test_what_is_told_is_bounded() -> None:
    assert len(str(failure(Entry("ValueError: " + "x" * 10_000)))) == SAID_MOST

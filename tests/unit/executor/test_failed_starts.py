"""When does a waiting call's function have containers that end while they start?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import SimpleNamespace

import pytest

from airflow_provider_modal.executors.starts import SAID_MOST, Starts, look

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
        ([Entry("Container ta-1 stopped with exit code 1", source="system")], "exit code 1"),
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
        [Entry("warmed up", at=40.0), Entry("ConnectionError: lost")],  # of one that had started and is idle
        [Entry("hello", 40.0, context_ids=["fc-0", "ta-1"]), Entry("ConnectionError: lost")],
        [Entry("Container ta-1 stopped with exit code 0 (idle)", source="system")],
        [Entry("no GPU is to be had: capacity error", source="system", context_ids=[])],  # of no container
        [Entry(TRACEBACK, context_ids=["fc-1", "in-1", "ta-1"])],  # of user code
        [Entry("hello", 90.0, context_ids=["fc-1", "in-1", "ta-1"]), Entry(TRACEBACK)],  # at its end
        [Entry(TRACEBACK), Entry("hello", 110.0, context_ids=["fc-1", "in-1", "ta-2"])],  # once, in passing
    ],
)
def test_what_is_no_evidence_counts_as_waiting_for_capacity(entries: list[Entry]) -> None:
    assert failure(*entries) is None


class Function:
    """A function of Modal's, as far as its containers are looked at."""

    def __init__(self, containers: int = 0, entries: Sequence[Entry] = ()) -> None:
        self.containers = containers
        self.entries = entries
        self.get_current_stats = SimpleNamespace(aio=self._stats)
        self.logs = SimpleNamespace(tail=SimpleNamespace(aio=self._tail))

    async def _stats(self) -> SimpleNamespace:
        return SimpleNamespace(backlog=1, num_total_runners=self.containers)

    async def _tail(self, entries: int) -> AsyncIterator[Entry]:
        for entry in self.entries:
            yield entry


@pytest.mark.parametrize(("containers", "told"), [(0, "No module named 'pandas'"), (1, "None")])
def test_containers_of_another_variant_tell_nothing_while_there_are_own_ones(
    containers: int, told: str
) -> None:
    base = Function(1, [Entry(TRACEBACK)])
    variant = Function(containers)
    starts = asyncio.run(look(variant, base))  # type: ignore[arg-type]
    assert told in str(starts.failure(50.0))
    assert "No module named" in str(asyncio.run(look(base, base)).failure(50.0))  # type: ignore[arg-type]


def test_what_is_told_is_bounded() -> None:
    assert len(str(failure(Entry("ValueError: " + "x" * 10_000)))) == SAID_MOST

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from airflow.models.callback import CallbackKey
from airflow.models.taskinstancekey import TaskInstanceKey
from sqlalchemy.exc import OperationalError

from airflow_provider_modal.executors import task_events
from airflow_provider_modal.executors.task_events import SUBMITTED_EVENT, TaskEvent, TaskEvents

KEY = TaskInstanceKey("d", "t", "r", 1, -1)
PATIENCE = 30.0


class Table:
    """Airflow's event log: keeps each transaction, unless it is away."""

    def __init__(self) -> None:
        self.transactions: list[list[TaskEvent]] = []
        self.failures: list[Exception] = []
        self.attempts = 0

    def write(self, events: list[TaskEvent]) -> None:
        self.attempts += 1
        if self.failures:
            raise self.failures.pop(0)
        self.transactions.append(list(events))

    @property
    def texts(self) -> list[str]:
        return [event.text for events in self.transactions for event in events]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    table = Table()
    monkeypatch.setattr(
        "airflow_provider_modal.executors.database.write_events", lambda rows: table.write(rows)
    )
    monkeypatch.setattr(task_events, "RETRY_SECONDS", 0.05)
    return table


@pytest.fixture
def events() -> Iterator[TaskEvents]:
    events = TaskEvents()
    yield events
    events.close(PATIENCE)


def test_what_comes_together_is_written_together(
    table: Table, events: TaskEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted_by = threading.current_thread()
    written_by = []
    write = table.write
    table.write = lambda rows: (written_by.append(threading.current_thread()), write(rows))[1]  # type: ignore[method-assign]
    monkeypatch.setattr(task_events, "GATHER_SECONDS", PATIENCE)  # until somebody hurries it
    for number in range(task_events.MOST_AT_ONCE):
        events.note(SUBMITTED_EVENT, KEY, f"call {number}")
    assert events.flush(PATIENCE)
    assert table.texts == [f"call {number}" for number in range(task_events.MOST_AT_ONCE)]
    assert len(table.transactions) == 1
    assert written_by and noted_by not in written_by


def test_only_task_instances_have_events(table: Table, events: TaskEvents) -> None:
    events.note(SUBMITTED_EVENT, CallbackKey("c"), "x")
    assert events.flush(PATIENCE) and table.attempts == 0


def test_database_that_comes_back_gets_everything_in_order(
    table: Table, events: TaskEvents, caplog: pytest.LogCaptureFixture
) -> None:
    table.failures = [OperationalError("", {}, Exception("gone")) for _ in range(3)]
    for text in ("a", "b"):
        events.note(SUBMITTED_EVENT, KEY, text)
    assert events.flush(PATIENCE)
    assert table.texts == ["a", "b"] and events.dropped == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"], "told once"


def test_what_the_database_refuses_does_not_keep_back_the_rest(table: Table, events: TaskEvents) -> None:
    table.failures = [ValueError("no such text")]
    events.note(SUBMITTED_EVENT, KEY, "refused")
    assert events.flush(PATIENCE) and events.dropped == 1
    events.note(SUBMITTED_EVENT, KEY, "taken")
    assert events.flush(PATIENCE)
    assert table.texts == ["taken"]


def test_memory_is_bounded_while_the_database_is_away(
    table: Table, events: TaskEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_events, "MOST_PENDING", 3)
    release = threading.Event()
    write = table.write
    table.write = lambda rows: (release.wait(PATIENCE), write(rows))[1]  # type: ignore[method-assign]
    for number in range(10):
        events.note(SUBMITTED_EVENT, KEY, str(number))
    release.set()
    assert events.flush(PATIENCE)
    assert len(table.texts) + events.dropped == 10
    assert table.texts[-3:] == ["7", "8", "9"], "the oldest go"


def test_closed_events_are_opened_by_the_next_note(table: Table, events: TaskEvents) -> None:
    events.note(SUBMITTED_EVENT, KEY, "before")
    events.close(PATIENCE)
    events.note(SUBMITTED_EVENT, KEY, "after")
    assert events.flush(PATIENCE)
    assert table.texts == ["before", "after"]


def test_texts_are_made_storable() -> None:
    assert task_events.storable("a\0b\ud800") == "a\N{REPLACEMENT CHARACTER}b?"
    assert len(task_events.storable("x" * 1_000_000)) == task_events.MOST_CHARACTERS


def test_a_process_without_another_thread_writes_later(
    events: TaskEvents, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limit:
        limit.setattr(threading.Thread, "start", refused)
        events.note(SUBMITTED_EVENT, KEY, "fc-1")
    events.note(SUBMITTED_EVENT, KEY, "fc-2")
    assert events.flush(PATIENCE)
    assert table.texts == ["fc-1", "fc-2"]

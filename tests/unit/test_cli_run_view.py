from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from airflow_provider_modal.cli import run_view
from airflow_provider_modal.cli.output import seconds
from airflow_provider_modal.errors import ModalflowError, UnreachableError


def task(name: str, state: str | None, **more: Any) -> dict[str, Any]:
    return {
        "task_id": name,
        "map_index": -1,
        "try_number": 1,
        "state": state,
        "queued_at": "2025-01-01T00:00:00+00:00",
        "start": "2025-01-01T00:00:01.5Z",
        "end": "2025-01-01T00:01:06.5+00:00",
        "host": "ta-1",
        "external_executor_id": None,
        "reason": None,
        **more,
    }


def run_of(state: str, *tasks: dict[str, Any]) -> dict[str, Any]:
    return {
        "dag_id": "d",
        "run_id": "r[bold]",
        "state": state,
        "queued_at": None,
        "start": "2025-01-01T00:00:00+00:00",
        "end": "2025-01-01T01:00:00+00:00",
        "tasks": list(tasks),
    }


def shown(run: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(run_view.view(run))
    return out.getvalue()


def test_a_run_is_shown_with_all_tries_and_names_as_they_are() -> None:
    first_try = task("flaky", "failed", reason="out of memory")
    text = shown(
        run_of(
            "success",
            task("[red]x", "success"),
            task("square", "success", map_index=2),
            task("flaky", "success", try_number=2, history=[first_try]),
        )
    )
    assert "r[bold]" in text
    assert "[red]x" in text
    assert "square[2]" in text
    assert "out of memory" in text
    assert text.count("flaky") == 2
    assert "1.5 s" in text
    assert "1 min 05 s" in text
    assert "1 h 00 min" in text


def bar_of(text: str, name: str) -> str:
    """The task's bar in 24 columns, with dots where nothing was."""
    [line] = [line for line in text.splitlines() if line.strip().startswith(name)]
    column = next(line for line in text.splitlines() if "timeline" in line).index("timeline")
    return line[column : column + run_view.BAR_COLUMNS].replace(" ", ".")


def test_bars_show_when_tasks_waited_and_ran_over_the_time_of_the_run() -> None:
    def at(minute: int) -> str:
        return f"2025-01-01T00:{minute:02d}:00Z"

    run = run_of(
        "success",
        task("whole", "success", queued_at=at(0), start=at(0), end=at(48)),
        task("waits", "success", queued_at=at(12), start=at(24), end=at(36)),
        task("brief", "success", queued_at=at(48), start=at(48), end=at(48)),
        task("never", "skipped", queued_at=None, start=None, end=None),
        # Of a former time, as after a clear.
        task("early", "queued", queued_at="2024-12-31T00:00:00Z", start=None, end=None),
    )
    text = shown({**run, "end": at(48)})
    assert bar_of(text, "whole") == "█" * 24
    assert bar_of(text, "waits") == "......░░░░░░██████......"
    assert bar_of(text, "brief") == "." * 23 + "█"
    assert bar_of(text, "never") == "." * 24
    assert bar_of(text, "early") == "░" * 24


def test_tasks_come_in_the_order_in_which_they_began() -> None:
    retried = task("second", "success", start="2025-01-01T09:00:00Z", history=[task("second", "failed")])
    text = shown(
        run_of(
            "running",
            task("not_begun", None, start=None, end=None),
            task("third", "success", start="2025-01-01T08:00:00Z", end="2025-01-01T08:01:00Z"),
            retried,
            task("first", "success", start="2025-01-01T00:00:00Z"),
        )
    )
    firsts = [line.split()[0] for line in text.splitlines()[1:] if line.split()]
    assert firsts[2:] == ["first", "second", "second", "third", "not_begun"]


def test_runs_are_listed_with_what_is_known_of_them() -> None:
    waiting = {"start": None, "end": None, "queued_at": "2025-01-02T00:00:00Z", "run_id": "r2"}
    runs = [{**run_of("success"), "type": "manual"}, {**run_of("queued"), "type": "scheduled", **waiting}]
    out = io.StringIO()
    Console(file=out, width=200).print(run_view.view_runs(runs))
    first, second = [line.split() for line in out.getvalue().splitlines() if line.strip().startswith("d ")]
    assert first == ["d", "r[bold]", "success", "manual", "2025-01-01T00:00:00Z", "1", "h", "00", "min"]
    assert second == ["d", "r2", "queued", "scheduled", "2025-01-02T00:00:00Z"]


def test_a_run_without_tasks_and_times_is_shown() -> None:
    blank = {"queued_at": None, "start": None, "end": None}
    text = shown({**run_of("queued", task("a", None, host=None, **blank)), **blank})
    assert "queued" in text
    assert "reason" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (7260, "2 h 01 min"),
    ],
)
def test_durations(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_each_change_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_view, "POLL_SECONDS", 0.0)
    answers: Iterator[run_view.Run | UnreachableError] = iter(
        [
            run_of("running", task("a", None), task("b", "queued")),
            run_of("running", task("a", None), task("b", "queued")),
            UnreachableError("away"),
            run_of("running", task("a", "up_for_retry"), task("b", "failed", reason="killed")),
            run_of("failed", task("a", "success", try_number=2), task("b", "failed", reason="killed")),
        ]
    )

    def fetch(seconds: float) -> run_view.Run:
        answer = next(answers)
        if isinstance(answer, UnreachableError):
            raise answer
        return answer

    assert run_view.follow(fetch, timeout=None)["state"] == "failed"
    lines = capsys.readouterr().err.splitlines()
    assert lines.pop(2) == "away; the run goes on, asking again"
    assert [line.split(" ", 1)[1] for line in lines] == [
        "run r[bold]: running",
        "b: queued",
        "a: up_for_retry",
        "b: failed: killed",
        "run r[bold]: failed",
        "a: success (try 2)",
    ]


def test_waiting_has_a_limit() -> None:
    with pytest.raises(ModalflowError, match=r"not ended within 0\.1 s; it goes on"):
        run_view.follow(lambda seconds: run_of("running"), timeout=0.1)


def test_a_run_that_takes_long_is_asked_for_more_rarely() -> None:
    assert [run_view.pause(elapsed) for elapsed in (0, 20, 100, 200, 1e5)] == [1, 1, 5, 10, 10]
    asked: list[float] = []

    def fetch(seconds: float) -> run_view.Run:
        asked.append(seconds)
        return run_of("success")

    run_view.follow(fetch, timeout=None)
    run_view.follow(fetch, timeout=60)
    run_view.follow(fetch, timeout=1)
    assert (asked[0], asked[2]) == (300, 5)
    assert 5 <= asked[1] <= 60


def test_patience_with_a_modal_that_is_away_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_view, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(run_view, "PATIENCE_SECONDS", 0.05)

    def fetch(seconds: float) -> run_view.Run:
        raise UnreachableError("away")

    with pytest.raises(UnreachableError):
        run_view.follow(fetch, timeout=None)

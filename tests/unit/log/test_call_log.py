"""What of a function call's output is not in the log that its worker shipped?"""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from airflow_provider_modal.log.call_log import REMEMBERED, Line, Shipped, call_of, parsed

BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)


def logged(seconds: float, event: str, logger: str = "task.stdout") -> str:
    at = (BEGIN + timedelta(seconds=seconds)).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return json.dumps({"timestamp": at, "level": "info", "event": event, "logger": logger})


def console(seconds: float, event: str, logger: str = "task.stdout") -> str:
    """A line as Airflow's supervisor prints it."""
    at = BEGIN + timedelta(seconds=seconds)
    return f"{at} [info     ] {event:30} [{logger}] loc=x.py:1\n"


def missing(shipped_lines: list[str], output: str) -> list[str]:
    shipped = Shipped()
    assert list(shipped.passing(shipped_lines)) == shipped_lines
    return [line.text.rstrip() for line in shipped.missing(parsed([(BEGIN.timestamp(), output)]))]


def events(lines: list[str]) -> list[str]:
    return [line.partition("  ")[0] for line in lines]


def test_what_was_shipped_is_not_repeated() -> None:
    output = console(1, "one") + console(2.0005, "two") + console(3, "three") + "Killed\n"
    found = missing([logged(1, "one"), logged(2, "two")], output)
    assert events(found) == ["three [task.stdout] loc=x.py:1".partition(" [")[0], "Killed"]


def test_same_text_at_another_time_is_another_line() -> None:
    shipped = [logged(n, "tick") for n in range(3)]
    assert len(missing(shipped, "".join(console(n, "tick") for n in range(5)))) == 2


def test_similar_text_at_the_same_time_is_another_line() -> None:
    assert events(missing([logged(1, "tick")], console(1, "tick tock"))) == ["tick tock"]


def test_event_of_several_lines_is_not_repeated_either() -> None:
    output = console(1, "first\nsecond\nthird") + console(2, "first\nlast")
    assert events(missing([logged(1, "first\nsecond\nthird")], output)) == [
        "first",
        "last",
    ]


def test_output_that_is_no_log_is_kept() -> None:
    output = "\x1b[31mFatal Python error\x1b[0m: Aborted\n\n" + console(1, "one") + "Runner terminated\n"
    assert missing([logged(1, "one"), "no json", "[1]"], output) == [
        "Fatal Python error: Aborted",
        "Runner terminated",
    ]


def test_beginning_of_a_long_log_is_known_to_be_shipped() -> None:
    shipped = [logged(n, f"line {n}") for n in range(REMEMBERED + 10)]
    output = (
        console(3, "line 3") + console(REMEMBERED, f"line {REMEMBERED}") + console(REMEMBERED + 11, "new")
    )
    assert events(missing(shipped, output)) == ["new"]


def test_line_that_comes_in_pieces_is_one() -> None:
    pieces = [(1.0, "ab"), (2.0, "c\nd"), (3.0, "e")]
    assert list(parsed(pieces)) == [Line(2.0, "abc"), Line(3.0, "de")]


def test_line_becomes_one_of_airflows() -> None:
    [line] = parsed([(0.0, console(1, "hello"))])
    record = json.loads(line.as_log())
    assert record["timestamp"] == "2026-01-01T00:00:01.000000+00:00"
    assert record["event"].startswith("hello") and record["level"] == "info"


@pytest.mark.parametrize(
    ("line", "call"),
    [('{"function_call": "fc-1"}', "fc-1"), ('{"function_call": null}', None), ("x", None), ("[]", None)],
)
def test_first_line_names_the_call(line: str, call: str | None) -> None:
    assert call_of(line) == call

"""Is an Airflow log line readable for people?"""

from __future__ import annotations

import json

import pytest

from airflow_provider_modal.log.reader import readable


@pytest.mark.parametrize("line", ["plain text", "[1, 2]", '{"no": "event"}', "{broken", ""])
def test_other_lines_stay_as_they_are(line: str) -> None:
    assert list(readable(line)) == [line]


def test_record_becomes_a_line() -> None:
    record = {
        "timestamp": "2026-11-23T15:00:00Z",
        "level": "info",
        "event": "Done",
        "logger": "task",
        "rows": 3,
        "who": "ü",
        "loc": "x.py:1",
    }
    assert list(readable(json.dumps(record))) == ["[2026-11-23T15:00:00Z] INFO - Done rows=3 who=ü"]


def test_event_of_several_lines() -> None:
    assert list(readable(json.dumps({"event": "one\ntwo", "timestamp": "t"}))) == ["[t] INFO - one", "two"]


def test_exception_is_shown_as_python_does() -> None:
    detail = {
        "exc_type": "ValueError",
        "exc_value": "wrong",
        "frames": [{"filename": "dag.py", "lineno": 7, "name": "task"}],
    }
    record = {"timestamp": "t", "level": "error", "event": "Task failed", "error_detail": [detail]}
    assert list(readable(json.dumps(record))) == [
        "[t] ERROR - Task failed",
        "Traceback (most recent call last):",
        '  File "dag.py", line 7, in task',
        "ValueError: wrong",
    ]

"""What is told of an import error: tracebacks as Airflow's DagBag keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_modal.cli.dag_check import NO_DATABASE, _explained

FILE = Path("/dags/my_dag.py")
FRAME = '  File "/dags/my_dag.py", line 7, in <module>\n    call()\n    ^^^^^^\n'
LIBRARY = '  File "/lib/x.py", line 99, in call\n    raise ValueError(text)\n'


@pytest.mark.parametrize(
    ("import_error", "told"),
    [
        (f"Traceback (most recent call last):\n{FRAME}ValueError: no\n", "line 7: ValueError: no"),
        (f"Traceback (most recent call last):\n{FRAME}{LIBRARY}a.b.Odd: no\n", "line 7: a.b.Odd: no"),
        (f"Traceback:\n{FRAME}{LIBRARY}ValueError: first\nsecond: line\n", "line 7: ValueError: first"),
        (f"Traceback:\n{FRAME}KeyboardInterrupt\n", "line 7: KeyboardInterrupt"),
        (f"Traceback:\n{LIBRARY}ValueError: no\n", "ValueError: no"),
        ("AirflowDagCycleException: Cycle detected\n", "AirflowDagCycleException: Cycle detected"),
        ("", "an error without text"),
    ],
)
def test_the_exception_and_the_line_of_the_file_are_told(import_error: str, told: str) -> None:
    assert _explained(import_error, FILE) == told


def test_the_last_line_of_the_file_counts_where_it_calls_itself() -> None:
    inner = FRAME.replace("line 7, in <module>", "line 3, in inner")
    assert _explained(f"Traceback:\n{FRAME}{inner}ValueError: no\n", FILE).startswith("line 3: ")


def test_an_attempt_to_reach_a_database_is_explained() -> None:
    error = f"Traceback:\n{FRAME}OperationalError: socket {NO_DATABASE}/.s.PGSQL.5432 failed\n"
    assert "metadata database" in _explained(error, FILE)

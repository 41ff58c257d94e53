from __future__ import annotations

import pytest

from airflow_provider_modal.cli import output
from airflow_provider_modal.cli.output import Steps, print_table, table, waiting


def test_ended_steps_are_told_and_quick_beginnings_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    with Steps() as steps:
        steps("volume", "started")
        steps("volume", "created", "airflow-vol-dev")
        steps("app", "started")
        steps("app", "failed", "the image could not be built")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["✓ volume created: airflow-vol-dev (0.0 s)", "✗ app failed (0.0 s)"]


def test_what_a_step_waits_for_is_told_before_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Steps() as steps:
        steps("schema", "started")
        steps("schema", "waiting", "for a scheduler run to end")
        steps("schema", "updated", "revision 1")
    assert capsys.readouterr().err.splitlines() == [
        "schema: waiting for a scheduler run to end",
        "✓ schema updated: revision 1 (0.0 s)",
    ]


def test_what_takes_longer_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ""
    monkeypatch.setattr(output, "_SILENT_SECONDS", 0.0)
    with waiting("asking for the DAGs"):
        while not told:
            told = capsys.readouterr().err
    assert told == "asking for the DAGs ...\n"


def test_tables_show_cells_as_they_are_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 150
    print_table(table(["a", "b", "c", "d"], [["[red]", None, True, long], [1, "", False, "ü"]]))
    lines = capsys.readouterr().out.splitlines()
    assert any("[red]" in line and "yes" in line and long in line for line in lines)
    assert any("no" in line and "ü" in line for line in lines)

"""The table of dev/bench: medians, 95th percentiles, and what that means for rates."""

from __future__ import annotations

import pytest

from bench.figures import Figure, table, times


@pytest.mark.parametrize(
    ("values", "unit", "median", "p95"),
    [
        (range(1, 101), "ms", 50.5, 95),
        (range(1, 101), "/s", 50.5, 6),
        ([7.0], "ms", 7.0, 7.0),
        ([3.0, 1.0, 2.0], "s", 2.0, 3.0),
    ],
)
def test_the_95th_percentile_is_the_bad_end(
    values: list[float], unit: str, median: float, p95: float
) -> None:
    figure = Figure("x", list(values), unit)
    assert (figure.median, figure.p95) == (median, p95)


def test_the_table_lines_up_and_has_no_percentile_of_one_value() -> None:
    lines = table(
        [Figure("spawn", [1.234, 2.0, 30.0], "ms", "2.5"), Figure("spawns", [705.4], "/s")]
    ).splitlines()
    assert [line.split() for line in lines] == [
        ["median", "p95", "n", "reference"],
        ["spawn", "2.00", "ms", "30.0", "3", "2.5"],
        ["spawns", "705", "/s", "1"],
    ]
    assert lines[0].index("  n  ") == lines[1].index("  3  ")


def test_times_are_in_the_unit_that_is_asked_for() -> None:
    calls: list[int] = []
    figure = times("append", lambda: calls.append(1), 4, unit="s")
    assert len(calls) == len(figure.values) == 4 and max(figure.values) < 1

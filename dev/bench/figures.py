"""How measurements are taken and shown: median and 95th percentile beside a reference."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Args:
        name: what was measured.
        values: all measured values, in `unit`.
        unit: "ms", "s", "/s" or "MiB".
        reference: what a prototype of the server needed, on two cores of another machine.
    """

    name: str
    values: Sequence[float]
    unit: str
    reference: str = ""

    @property
    def median(self) -> float:
        """The middle of the values."""
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        """What 95 of 100 values don't exceed; of rates, what they don't fall short of."""
        ordered = sorted(self.values, reverse=self.unit == "/s")
        return ordered[max(0, math.ceil(0.95 * len(ordered)) - 1)]


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def times(
    name: str, action: Callable[[], object], count: int, reference: str = "", *, unit: str = "ms"
) -> Figure:
    """Measure an action `count` times, in milliseconds or seconds."""
    factor = 1000 if unit == "ms" else 1
    return Figure(name, [factor * seconds(action) for _ in range(count)], unit, reference)


def table(figures: Iterable[Figure]) -> str:
    """Columns for people: name, median, p95, number of values, reference."""
    rows = [("", "median", "p95", "n", "reference")]
    for each in figures:
        p95 = _number(each.p95) if len(each.values) > 1 else ""
        rows.append(
            (each.name, f"{_number(each.median)} {each.unit}", p95, str(len(each.values)), each.reference)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, median, p95, count, reference in rows:
        cells = (name.ljust(widths[0]), median.rjust(widths[1]), p95.rjust(widths[2]), count.rjust(widths[3]))
        lines.append("  ".join((*cells, reference)).rstrip())
    return "\n".join(lines)


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"

"""What `top` shows, as rows of text: from two answers of /control/status to the lines of a frame."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

RPCS_SHOWN = 8
ROWS_SHOWN = 12
"""Of each table, on a screen."""
LINES_SHOWN = 8
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Table:
    """A part of the frame. The first column is text, the others are aligned as `numbers` says."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: frozenset[str] = frozenset()
    """Columns that are aligned to the right."""


def headline(status: Mapping[str, Any]) -> str:
    """One line on the server itself."""
    server = status["server"]
    busy = sum(container["state"] == "busy" for container in status["containers"])
    return (
        f"local Modal {server['server_url']}  {server['mode']}  pid {server['pid']}  "
        f"up {duration(server['uptime'])}  {server['memory'] / MEBIBYTE:.0f} MB  "
        f"containers {len(status['containers'])}/{server['max_containers']} ({busy} busy)  "
        f"queued {sum(row['queued'] for row in status['functions'])}  seed {server['seed']}"
    )


def tables(
    status: Mapping[str, Any], before: Mapping[str, Any] | None = None, rows: int | None = None
) -> list[Table]:
    """The parts of a frame, each with `rows` rows at most; rates are since `before`, an earlier answer (none:
    since the start).
    """
    parts = [_apps(status), _functions(status), _containers(status), _rpcs(status, before)]
    if status["faults"]:
        parts.append(_faults(status))
    return [_cut(part, rows) for part in parts]


def _cut(table: Table, rows: int | None) -> Table:
    if rows is None or len(table.rows) <= rows:
        return table
    title = f"{table.title} ({rows} of {len(table.rows)})"
    return replace(table, title=title, rows=table.rows[:rows])


def log_lines(status: Mapping[str, Any]) -> list[str]:
    """The newest lines of the server's log."""
    return [
        f"{time.strftime('%H:%M:%S', time.localtime(line['time']))} {line['level'][:4]} {line['message']}"
        for line in status["log"][-LINES_SHOWN:]
    ]


def _apps(status: Mapping[str, Any]) -> Table:
    rows = [
        (app["name"], app["environment"], app["state"], str(app["functions"]), app["app_id"])
        for app in status["apps"]
    ]
    return Table("Apps", ("app", "environment", "state", "functions", "id"), rows, frozenset({"functions"}))


def _functions(status: Mapping[str, Any]) -> Table:
    columns = (
        "containers",
        "starting",
        "queued",
        "running",
        "cold_starts",
        "succeeded",
        "failed",
        "cancelled",
    )
    rows = [
        (f"{row['app_name']}.{row['function_name']}", *(str(row[column]) for column in columns))
        for row in status["functions"]
    ]
    header = ("function", *(column.replace("_", " ") for column in columns))
    return Table("Functions", header, rows, frozenset(header[1:]))


def _containers(status: Mapping[str, Any]) -> Table:
    rows = []
    for container in status["containers"]:
        inputs = container["running_inputs"]
        current = (
            inputs[0]["input_id"] + (f" +{len(inputs) - 1}" if len(inputs) > 1 else "") if inputs else ""
        )
        rows.append(
            (
                container["task_id"],
                f"{container['app_name']}.{container['function_name']}",
                container["state"],
                str(container["pid"] or ""),
                duration(container["age"]),
                f"{container['memory'] / MEBIBYTE:.0f} MB",
                str(container["inputs_taken"]),
                current,
            )
        )
    header = ("container", "function", "state", "pid", "age", "memory", "taken", "input")
    return Table("Containers", header, rows, frozenset({"pid", "age", "memory", "taken"}))


def _rpcs(status: Mapping[str, Any], before: Mapping[str, Any] | None) -> Table:
    earlier = before["rpcs"] if before else {}
    seconds = status["server"]["uptime"] - (before["server"]["uptime"] if before else 0.0)
    rows = []
    for name, now in status["rpcs"].items():
        then = earlier.get(name, {"calls": 0, "errors": 0, "seconds": 0.0})
        calls = now["calls"] - then["calls"]
        mean = 1000 * (now["seconds"] - then["seconds"]) / calls if calls else 0.0
        rate = calls / seconds if seconds > 0 else 0.0
        rows.append((rate, now["calls"], name, now["errors"], mean))
    rows.sort(reverse=True)
    shown = [
        (name, f"{rate:.1f}", f"{mean:.1f}" if rate else "", str(calls), str(errors))
        for rate, calls, name, errors, mean in rows[:RPCS_SHOWN]
    ]
    header = ("rpc", "per second", "ms", "calls", "errors")
    return Table("RPCs", header, shown, frozenset(header[1:]))


def _newest_in_force_first(faults: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    newest_first = list(reversed(faults))
    in_force = [fault for fault in newest_first if fault["state"] == "active"]
    return in_force + [fault for fault in newest_first if fault["state"] != "active"]


def _faults(status: Mapping[str, Any]) -> Table:
    told = {"id", "fault", "state", "struck", "effect", "rpc"}
    rows = [
        (
            fault["id"],
            fault["fault"],
            fault["rpc"],
            fault["state"],
            str(fault["struck"]),
            " ".join(f"{name}={value}" for name, value in fault.items() if name not in told),
        )
        for fault in _newest_in_force_first(status["faults"])
    ]
    return Table("Faults", ("id", "fault", "rpc", "state", "struck", "settings"), rows, frozenset({"struck"}))


def duration(seconds: float) -> str:
    """Such as 5.2s, 3m12s, 4h05m."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def plain(
    status: Mapping[str, Any],
    before: Mapping[str, Any] | None = None,
    width: int = 0,
    rows: int | None = None,
) -> list[str]:
    """A frame as lines of plain text, cut to `width` columns if that isn't 0."""
    lines = [headline(status)]
    for table in tables(status, before, rows):
        lines += ["", *_plain_table(table)]
    if status["log"]:
        lines += ["", "Log", *log_lines(status)]
    return [line[:width] if width else line for line in lines]


def _plain_table(table: Table) -> list[str]:
    if not table.rows:
        return [f"{table.title}: none"]
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if name in table.numbers else cell.ljust(width)
            for name, cell, width in zip(table.header, cells, widths, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return [table.title, line(table.header), *(line(row) for row in table.rows)]

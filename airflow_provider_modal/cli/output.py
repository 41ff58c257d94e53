"""How do commands talk? Results to stdout, progress to stderr, colours only on a terminal."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.status import Status
    from rich.table import Table

_PIPED_WIDTH = 400
"""Columns for tables that are not shown on a terminal: nothing is cut off that a script may look for."""

_SILENT_SECONDS = 2.0


def print_json(value: Any) -> None:
    """Print ``value`` as the JSON document of a ``--json`` command."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_text(text: str) -> None:
    """Print a line of the result."""
    click.echo(text)


def note(text: str) -> None:
    """Tell something that is not the result: a warning, a hint."""
    click.echo(text, err=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table; cells are shown as they are (no markup), None as nothing."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, Text) else Text(_cell(cell)) for cell in row))
    return shown


def print_table(shown: RenderableType) -> None:
    """Print a table, or what holds one, on stdout."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(shown)


def seconds(value: float | None) -> str:
    """Return a duration for people: ``0.4 s``, ``2 min 05 s``; nothing for None."""
    if value is None:
        return ""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def brief_time(text: str | None) -> str | None:
    """Return an ISO 8601 time in UTC to the second, for people."""
    return None if text is None else f"{text[:19]}Z"


def size_text(number: int) -> str:
    """Return a number of bytes for people: ``812 bytes``, ``3.4 MiB``."""
    if number < 1024:
        return f"{number} byte{'' if number == 1 else 's'}"
    units = ("KiB", "MiB", "GiB", "TiB")
    power = min((number.bit_length() - 1) // 10, len(units))
    return f"{number / 1024**power:.1f} {units[power - 1]}"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on stderr what is being waited for, once that has taken two seconds."""
    timer = threading.Timer(_SILENT_SECONDS, note, [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Steps:
    """Tells on stderr what becomes of the steps of a command: ``steps(name, status, detail)``.

    Status ``started`` begins a step, ``waiting`` says what for, any other one ends it. On a terminal a step
    that runs has a spinner; elsewhere it is named once it has taken two seconds. Every end is a line.
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._running = ExitStack()

    def __call__(self, name: str, status: str, detail: str | None = None) -> None:
        """Report the beginning or the end of a step."""
        self._running.close()
        if status == "started":
            self._since = time.monotonic()
            self._running.enter_context(_spinner(name) if sys.stderr.isatty() else waiting(name))
            return
        if status == "waiting":
            text = f"{name}: waiting {detail}"
            if sys.stderr.isatty():
                self._running.enter_context(_spinner(text))
            else:
                note(text)
            return
        colour, mark = ("red", "✗") if status == "failed" else ("green", "✓")
        # A failure's text is the command's error, which follows.
        more = f": {detail}" if detail and status != "failed" else ""
        took = seconds(time.monotonic() - self._since)
        click.echo(f"{click.style(mark, fg=colour)} {name} {status}{more} ({took})", err=True)

    def __enter__(self) -> Steps:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Clear what still spins."""
        self._running.close()


def _spinner(text: str) -> Status:
    from rich.console import Console
    from rich.markup import escape

    return Console(stderr=True).status(escape(text))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)

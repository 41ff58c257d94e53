"""The commands `top` and `status`: look at a running server."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from local_modal import top_view
from local_modal.cli_common import Raw, Refused, add_state_dir
from local_modal.clients import Control, ControlError

INTERVAL = 1.0
STATUS_SECONDS = 5.0
CLEAR, HOME, HIDE, SHOW = "\x1b[2J", "\x1b[H", "\x1b[?25l", "\x1b[?25h"
REST_OF_LINE, REST_OF_SCREEN = "\x1b[K", "\x1b[J"

TOP = """\
Show a running server, anew every second until Ctrl-C: apps, functions with their queues, containers, RPCs,
faults and the server's log. Uses `rich` where it is installed.
"""


def add_commands(commands: Any) -> None:
    """Add `top` and `status`."""
    top = commands.add_parser("top", help="watch a running server", description=TOP, formatter_class=Raw)
    add_state_dir(top)
    top.add_argument(
        "--interval", type=float, default=INTERVAL, metavar="SECONDS", help="default: %(default)g"
    )
    top.add_argument("--once", action="store_true", help="print one frame and end")
    top.add_argument("--json", action="store_true", help="print what a frame is made of, as JSON, and end")
    top.add_argument("--plain", action="store_true", help="text only, without `rich`")
    top.set_defaults(command=_top)
    status = commands.add_parser(
        "status",
        help="whether a server runs, and what it is doing",
        description="Say whether a server runs on the state directory. The exit code is 1 if none does.",
    )
    add_state_dir(status)
    status.add_argument("--json", action="store_true", help="everything, as JSON")
    status.set_defaults(command=_status)


def _status(arguments: argparse.Namespace) -> int:
    status = Control.of(arguments.state_dir).get("status", STATUS_SECONDS)
    print(json.dumps(status, indent=2) if arguments.json else top_view.headline(status))
    return 0


def _top(arguments: argparse.Namespace) -> int:
    if arguments.interval <= 0:
        raise Refused(f"--interval {arguments.interval}: seconds above 0")
    control = Control.of(arguments.state_dir)
    status = control.get("status", STATUS_SECONDS)
    if arguments.json:
        print(json.dumps(status, indent=2))
        return 0
    if arguments.once or not sys.stdout.isatty():
        print("\n".join(top_view.plain(status)))
        return 0
    screen: _Screen | _PlainScreen = _PlainScreen()
    if not arguments.plain:
        try:
            screen = _Screen()
        except ImportError:
            pass  # `rich` isn't there; plain text says the same
    try:
        with screen:
            _watch(control, status, screen, arguments.interval)
    except KeyboardInterrupt:
        return 0  # the way to end it


def _watch(control: Control, status: Any, screen: _Screen | _PlainScreen, interval: float) -> NoReturn:
    before = None
    while True:
        screen.show(status, before)
        time.sleep(interval)
        try:
            # A paused server makes the view wait; one that has gone ends it with a sentence.
            before, status = status, control.get("status", 3600.0)
        except ControlError as error:
            raise ControlError(f"The server has gone. {error}") from None


class _PlainScreen:
    """Redraws the terminal with escape sequences only."""

    def __enter__(self) -> _PlainScreen:
        sys.stdout.write(CLEAR + HIDE)
        return self

    def __exit__(self, *error: object) -> None:
        sys.stdout.write(SHOW + "\n")
        sys.stdout.flush()

    def show(self, status: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
        """Draw a frame over the one before."""
        size = shutil.get_terminal_size()
        lines = top_view.plain(status, before, size.columns, top_view.ROWS_SHOWN)[: size.lines - 1]
        sys.stdout.write(HOME + f"{REST_OF_LINE}\n".join(lines) + REST_OF_LINE + REST_OF_SCREEN)
        sys.stdout.flush()


class _Screen:
    """Draws with `rich`.

    Raises:
        ImportError: it isn't installed.
    """

    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(screen=True, auto_refresh=False)

    def __enter__(self) -> _Screen:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def show(self, status: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
        """Draw a frame over the one before."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        parts: list[Any] = [Text(top_view.headline(status), style="bold")]
        for table in top_view.tables(status, before, top_view.ROWS_SHOWN):
            drawn = Table(
                title=table.title, title_justify="left", title_style="bold cyan", box=None, pad_edge=False
            )
            for name in table.header:
                drawn.add_column(
                    name,
                    justify="right" if name in table.numbers else "left",
                    header_style="dim",
                    no_wrap=True,
                    overflow="ellipsis",
                )
            for row in table.rows:
                drawn.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
            if not table.rows:
                drawn.add_row(Text("none", style="dim"), *[""] * (len(table.header) - 1))
            parts += ["", drawn]
        parts += ["", Text("Log", style="bold cyan")]
        for line in top_view.log_lines(status):
            style = "red" if " ERRO " in line else "yellow" if " WARN " in line else "dim"
            parts.append(Text(line, style=style, no_wrap=True, overflow="ellipsis"))
        self._live.update(Group(*parts), refresh=True)


STYLES = {
    "busy": "green",
    "starting": "yellow",
    "retiring": "magenta",
    "idle": "dim",
    "active": "red",
    "deployed": "green",
}

"""`python -m local_modal` as a user runs it, with and without a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 60


def command(*arguments: str) -> list[str]:
    """What to execute."""
    return [sys.executable, "-m", "local_modal", *arguments]


def environ(**more: str) -> dict[str, str]:
    """The environment to execute it in."""
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "dev")} | more


def local_modal(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(*arguments), env=environ(**more), capture_output=True, text=True, timeout=SECONDS
    )


def in_terminal(*arguments: str, until: Callable[[str], bool]) -> tuple[str, int]:
    """Run it in a terminal of 150 x 50 until what it has shown (without escape sequences) is enough, then
    press Ctrl-C; returns that and the exit code.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 150, 0, 0))
    process = subprocess.Popen(
        command(*arguments),
        env=environ(TERM="xterm-256color", COLUMNS="150", LINES="50"),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    shown = ""
    deadline = time.monotonic() + SECONDS
    try:
        while not until(_text(shown)) and time.monotonic() < deadline:
            shown += _read(master)
        process.send_signal(signal.SIGINT)
        while process.poll() is None and time.monotonic() < deadline:
            shown += _read(master)
    finally:
        process.kill()
        code = process.wait()
        os.close(master)
    return _text(shown), code


def _read(master: int) -> str:
    if not select.select([master], [], [], 0.1)[0]:
        return ""
    try:
        return os.read(master, 65536).decode(errors="replace")
    except OSError:  # how Linux says that nobody is left on the other side
        return ""


def _text(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)

"""How far containers can be kept apart on this machine, found out by one trial at the start, and what a
container's file tree is made of.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launcher.py")
NO_NAMESPACES = "LOCAL_MODAL_NO_NAMESPACES"
ISOLATED, SHARED = "isolated", "shared"
HOSTNAME = "modal"
HIDDEN = ("/tmp", "/root")
"""Directories of the host that a container has its own version of."""


@dataclass(frozen=True)
class Isolation:
    """The mode in force and, if it is the weaker one, why."""

    mode: str
    reason: str = ""

    def describe(self) -> str:
        """One sentence for the log."""
        if self.mode == ISOLATED:
            return "Containers have their own host name, pids, /tmp, home directory and file tree."
        return (
            f"Weaker isolation ({self.reason}): containers share the host's name, pids and file tree; "
            "home, temporary and volume directories are their own, by environment variables."
        )

    def missing(self) -> list[str]:
        """What can't be had, a phrase each."""
        return [] if self.mode == ISOLATED else [f"containers share the host's file tree ({self.reason})"]


class NotIsolated(ValueError):
    """Isolation is required and `missing` can't be had on this machine."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__("--require-isolation: " + "; ".join(missing))


@dataclass(frozen=True)
class Interpreter:
    """A Python that stands in for images."""

    executable: str
    prefixes: tuple[str, ...]
    """Directories that it needs."""
    user_base: str = ""
    """Where `pip install --user` put packages for it, if anything is there."""
    foreign: tuple[str, ...] = ()
    """Entries of its path elsewhere: checkouts that are installed "editable". An image wouldn't have them."""


async def detect(python: str) -> Isolation:
    """Try to start an isolated process; on any failure the mode is "shared", with the reason."""
    if os.environ.get(NO_NAMESPACES, "") not in ("", "0"):
        return Isolation(SHARED, f"{NO_NAMESPACES} is set")
    with tempfile.TemporaryDirectory(prefix="local-modal-trial-") as directory:
        for name in ("scratch", "source"):
            Path(directory, name).mkdir()
        spec = {
            "mode": ISOLATED,
            "parent_pid": os.getpid(),
            "cgroups": [],
            "cwd": "/",
            "hostname": HOSTNAME,
            "scratch": f"{directory}/scratch",
            "binds": [{"target": "/__modal/trial", "source": f"{directory}/source", "read_only": True}],
            "foreign_path": [],
            "module": "keyword",
            "argv": [],
        }
        path = Path(directory, "spec.json")
        path.write_text(json.dumps(spec))
        process = await asyncio.create_subprocess_exec(
            *(python, str(LAUNCHER), str(path)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
    if process.returncode == 0:
        return Isolation(ISOLATED)
    lines = errors.decode(errors="replace").strip().splitlines()
    return Isolation(SHARED, f"namespaces are not available: {lines[-1] if lines else 'the trial failed'}")


async def inspect_interpreter(python: str) -> Interpreter:
    """Ask an interpreter where it lives.

    Raises:
        OSError: it can't be started.
        ValueError: it doesn't answer.
    """
    process = await asyncio.create_subprocess_exec(
        *(python, "-c", _INSPECT),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        cwd="/",
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise ValueError(f"{python} is not a working Python interpreter (exit code {process.returncode})")
    executable, prefixes, user_base, path = json.loads(output)
    prefixes.append(os.path.dirname(os.path.dirname(os.path.realpath(executable))))
    own = [*prefixes, user_base] if user_base else prefixes
    foreign = [
        entry
        for entry in path
        if os.path.isdir(entry) and entry != "/" and not any(_within(entry, prefix) for prefix in own)
    ]
    return Interpreter(executable, tuple(dict.fromkeys(own)), user_base, tuple(foreign))


_INSPECT = """
import json, os, site, sys
user_base = site.getuserbase() if site.ENABLE_USER_SITE and os.path.isdir(site.getusersitepackages()) else ""
print(json.dumps([sys.executable, [sys.prefix, sys.base_prefix], user_base, sys.path[1:]]))
"""


def mount_binds(root: Path) -> list[dict[str, object]]:
    """The binds that put the files below `root` at their absolute paths, beside what the host has there."""
    binds: list[dict[str, object]] = []

    def visit(relative: str) -> None:
        source = root / relative
        target = f"/{relative}"
        on_host = os.path.isdir(target) and not _hidden(os.path.dirname(target))
        if source.is_dir() and (on_host or target in HIDDEN):
            for name in sorted(os.listdir(source)):
                visit(f"{relative}/{name}")
        else:
            binds.append({"target": target, "source": str(source), "read_only": True})

    for name in sorted(os.listdir(root)):
        visit(name)
    return binds


def interpreter_binds(interpreter: Interpreter, empty: Path) -> list[dict[str, object]]:
    """Hide the checkouts on an interpreter's path, also from its sub-processes; keep what it needs visible
    below directories that are hidden."""
    masked = [{"target": path, "source": str(empty), "read_only": True} for path in interpreter.foreign]
    kept = [
        {"target": prefix, "source": prefix, "read_only": True}
        for prefix in interpreter.prefixes
        if any(_within(prefix, hidden) for hidden in (*HIDDEN, *interpreter.foreign))
    ]
    return [*masked, *kept]


def _hidden(path: str) -> bool:
    return any(_within(path, hidden) for hidden in HIDDEN)


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")

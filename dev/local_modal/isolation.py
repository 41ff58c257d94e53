"""How far containers can be kept apart on this machine, found out by one trial at the start, and what a
container's file tree is made of.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from local_modal.ask_python import ask
from local_modal.launcher import EMPTY_DIRECTORIES, SYSTEM_DIRECTORIES

LAUNCHER = Path(__file__).with_name("launcher.py")
NO_NAMESPACES = "LOCAL_MODAL_NO_NAMESPACES"
ISOLATED, SHARED = "isolated", "shared"
HOSTNAME = "modal"
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
OWN = ("/tmp", "/root", "/var", *(f"/{name}" for name in EMPTY_DIRECTORIES))
"""Directories of which every container has its own; in them it sees nothing of the host."""


@dataclass(frozen=True)
class Isolation:
    """The mode in force and, if it is the weaker one, why."""

    mode: str
    reason: str = ""
    fresh_monotonic: bool = False
    """Whether containers' monotonic clock begins near zero."""
    clock_reason: str = ""
    """Why not, if it was asked for."""

    def describe(self) -> str:
        """One sentence for the log."""
        if self.mode == ISOLATED:
            return (
                "Containers have their own host name, pids, IPC, /tmp, home directory and file tree; the "
                "network is the host's."
            )
        return (
            f"Weaker isolation ({self.reason}): containers share the host's name, pids and file tree; "
            "home, temporary and volume directories are their own, by environment variables."
        )

    def missing(self) -> list[str]:
        """What can't be had, a phrase each."""
        gaps = [] if self.mode == ISOLATED else [f"containers share the host's file tree ({self.reason})"]
        if self.clock_reason:
            gaps.append(f"the monotonic clock is the host's ({self.clock_reason})")
        return gaps


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


async def detect(python: str, fresh_monotonic: bool = False) -> Isolation:
    """Try to start an isolated process; on any failure the mode is "shared", with the reason.

    Args:
        python: the interpreter of the trial.
        fresh_monotonic: whether containers are to have a clock of their own as well.
    """
    if os.environ.get(NO_NAMESPACES, "") not in ("", "0"):
        reason = f"{NO_NAMESPACES} is set"
    elif not (reason := await _try(python, fresh_monotonic)):
        return Isolation(ISOLATED, fresh_monotonic=fresh_monotonic)
    elif fresh_monotonic and not await _try(python, False):
        return Isolation(ISOLATED, clock_reason=reason)
    return Isolation(SHARED, reason, clock_reason=reason if fresh_monotonic else "")


async def _try(python: str, fresh_monotonic: bool) -> str:
    """Run something in a container; returns what went wrong."""
    with tempfile.TemporaryDirectory(prefix="local-modal-trial-") as directory:
        for name in ("scratch", "source"):
            Path(directory, name).mkdir()
        spec = bare_spec(
            await inspect_interpreter(python),
            Path(directory, "scratch"),
            [{"target": "/__modal/trial", "source": f"{directory}/source", "read_only": True}],
            fresh_monotonic=fresh_monotonic,
            module="keyword",
        )
        failure = await try_out(python, spec)
    return f"namespaces are not available: {failure}" if failure else ""


def bare_spec(
    interpreter: Interpreter, scratch: Path, binds: list[dict[str, object]], **changes: object
) -> dict[str, object]:
    """What the launcher reads, for an isolated container that runs a module without anything of Modal's."""
    empty = Path(f"{scratch}.empty")
    empty.mkdir()
    spec: dict[str, object] = {
        "mode": ISOLATED,
        "parent_pid": os.getpid(),
        "cgroups": [],
        "cwd": "/",
        "hostname": HOSTNAME,
        "fresh_monotonic": False,
        "scratch": str(scratch),
        "binds": [*binds, *interpreter_binds(interpreter, empty)],
        "foreign_path": [],
        "argv": [],
    }
    return spec | changes


async def try_out(python: str, spec: dict[str, object]) -> str:
    """Run the container to its end; the empty string if that went well, else the last that it said."""
    path = Path(f"{spec['scratch']}.json")
    path.write_text(json.dumps(spec))
    process = await asyncio.create_subprocess_exec(
        *(python, str(LAUNCHER), str(path)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    if process.returncode == 0:
        return ""
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {process.returncode}"


async def inspect_interpreter(python: str) -> Interpreter:
    """Ask an interpreter where it lives.

    Raises:
        OSError: it can't be started.
        ValueError: it doesn't answer.
    """
    executable, prefixes, user_base, path = await ask(python, _INSPECT)
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
    """The binds that put the files below `root` at their absolute paths, beside what is there already."""
    binds: list[dict[str, object]] = []

    def visit(relative: str) -> None:
        source = root / relative
        target = f"/{relative}"
        if source.is_dir() and (target in OWN or (visible(target) and os.path.isdir(target))):
            for name in sorted(os.listdir(source)):
                visit(f"{relative}/{name}")
        else:
            binds.append({"target": target, "source": str(source), "read_only": True})

    for name in sorted(os.listdir(root)):
        visit(name)
    return binds


def interpreter_binds(interpreter: Interpreter, empty: Path) -> list[dict[str, object]]:
    """Keep what an interpreter needs visible; hide the checkouts on its path, also from sub-processes."""
    masked = [
        {"target": path, "source": str(empty), "read_only": True}
        for path in interpreter.foreign
        if visible(path)
    ]
    kept = [
        {"target": prefix, "source": prefix, "read_only": True}
        for prefix in interpreter.prefixes
        if not visible(prefix) or any(_within(prefix, foreign) for foreign in interpreter.foreign)
    ]
    return [*masked, *kept]


def state_binds(state_dir: Path, interpreter: Interpreter, empty: Path) -> list[dict[str, object]]:
    """Hide the server's own directory, with its secrets, where it is in one that containers see."""
    place = os.path.realpath(state_dir)
    if not visible(place) and not any(_within(place, prefix) for prefix in interpreter.prefixes):
        return []
    return [{"target": place, "source": str(empty), "read_only": True}]


def exposed_by(share: Path, state_dir: Path) -> bool:
    """Whether containers that see `share` would see something of the server's own directory."""
    shared, own = os.path.realpath(share), os.path.realpath(state_dir)
    return _within(own, shared) or _within(shared, own)


def system_binds(environ: Mapping[str, str]) -> list[dict[str, object]]:
    """Files elsewhere that the system directories or the environment point at: the name server's address,
    certificates.
    """
    candidates = ["/etc/resolv.conf", *(environ.get(name, "") for name in CERTIFICATES)]
    return [
        {"target": target, "source": os.path.realpath(path), "read_only": True}
        for path in candidates
        for target in dict.fromkeys((path, os.path.realpath(path)))
        if os.path.isfile(path) and not visible(target)
    ]


def share_binds(directories: Iterable[Path]) -> list[dict[str, object]]:
    """What the user wants containers to see of this machine, writable."""
    return [{"target": str(path), "source": str(path)} for path in directories]


def visible(path: str) -> bool:
    """Whether a path of the host is one in containers, too, if nothing else is bound there."""
    return path.strip("/").partition("/")[0] in SYSTEM_DIRECTORIES


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")

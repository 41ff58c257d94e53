"""Which processes belong to a child, and how do all of them end with it?

A child of the zygote leads a session, but what it starts may have process groups of its own (Airflow puts
every task into one), so a signal to the child's group does not reach them. ``/proc`` knows everybody's
session and parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PASSES = 50
_PAUSE = 0.01


@dataclass(frozen=True)
class Process:
    """A line of ``/proc/{pid}/stat``; see proc(5)."""

    pid: int
    state: str
    parent: int
    session: int


def running() -> list[Process]:
    """Return all processes that this one can see, without zombies."""
    found: list[Process] = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            stat = Path("/proc", name, "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it ended in the meantime
            continue
        # The command's name is in parentheses and may hold anything, parentheses included.
        fields = stat.rpartition(")")[2].split()
        if fields[0] not in "ZX":
            found.append(Process(int(name), fields[0], int(fields[1]), int(fields[3])))
    return found


def family(leader: int, processes: list[Process] | None = None) -> list[Process]:
    """Return the session of ``leader`` with all descendants of its members, ``leader`` included."""
    processes = running() if processes is None else processes
    members = {process.pid for process in processes if leader in (process.pid, process.session)}
    while True:
        more = {p.pid for p in processes if p.parent in members and p.pid not in members}
        if not more:
            return [process for process in processes if process.pid in members]
        members |= more


def kill_family(leader: int) -> int:
    """SIGKILL the session of ``leader`` and its descendants until none is left; return how many there were.

    Gives up on what does not die within half a second (uninterruptible sleep); the kernel ends it later.
    """
    killed: set[int] = set()
    for _ in range(_PASSES):
        members = [process.pid for process in family(leader) if process.pid != os.getpid()]
        if not members:
            break
        for pid in members:
            send_signal(pid, signal.SIGKILL)
        killed.update(members)
        time.sleep(_PAUSE)
    return len(killed)


def children_of(parent: int) -> frozenset[int]:
    """Return the pids of a process's children, adopted ones included."""
    return frozenset(process.pid for process in running() if process.parent == parent)


def send_signal(pid: int, signum: int) -> None:
    """Send a signal to a process that may be gone."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass


def signal_name(signum: int, otherwise: str = "unknown") -> str:
    """Return ``SIGKILL`` for 9; ``otherwise`` for a number that Python has no name for."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return otherwise


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that forked it ends; see prctl(2).

    Whoever calls it must compare ``os.getppid()`` afterwards: the parent may have died before the call.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent died (a sub-reaper), so that nobody else has to."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")

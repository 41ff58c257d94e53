"""The processes of a container, looked at from outside: which there are, and which one runs user code."""

from __future__ import annotations

import os
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """All live processes below `pid`."""
    found: list[int] = []
    pending = _children(pid)
    while pending:
        child = pending.pop()
        found.append(child)
        pending += _children(child)
    return found


def entry_pid(supervisor: int, *, isolated: bool) -> int | None:
    """The process that runs user code in the container whose first process is `supervisor`; None if it isn't
    that far or has ended.
    """
    parents = _children(supervisor) if isolated else [supervisor]
    candidates = [pid for parent in parents for pid in _children(parent)]
    # Orphans of user code have the same parent, but came later.
    return min(candidates, key=_started, default=None)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return found  # it has ended
    for thread in threads:  # children belong to the thread that forked them
        try:
            text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [int(child) for child in text.split()]
    return found


def _started(pid: int) -> tuple[int, int]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return (2**63, pid)
    return (int(stat.rpartition(")")[2].split()[19]), pid)

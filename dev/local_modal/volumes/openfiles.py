"""Which processes use files below a directory: open descriptors, working directories and memory mappings,
from `/proc`.

The kernel shows paths as the process's mount namespace has them, so every place where the directory is
mounted has to be named. Without `/proc` (not Linux) nothing is ever found.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence


def find_use(pids: Iterable[int], roots: Sequence[str]) -> str | None:
    """A description of the first use found of something below one of `roots` by one of the processes, or
    None.

    A file that is open but has been removed counts, too. A process that ends or can't be looked into while we
    look uses nothing.
    """
    prefixes = tuple(root.rstrip("/") for root in roots)
    for pid in pids:
        try:
            working_directory = os.readlink(f"/proc/{pid}/cwd")
            if _below(working_directory, prefixes):
                return f"the working directory of process {pid} is {working_directory}"
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                path = _link(f"/proc/{pid}/fd/{descriptor}")
                if _below(path, prefixes):
                    return f"{path} is open in process {pid}"
            for _, path in _mappings(pid):
                if _below(path, prefixes):
                    return f"{path} is mapped into the memory of process {pid}"
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return None


def written_through_memory(pids: Iterable[int], roots: Sequence[str]) -> set[str]:
    """The paths, relative to their root, of files below `roots` that a process can change without the file
    system's noticing.

    A store into a shared mapping updates the file's times only when it dirties a clean page, so unchanged
    times prove nothing.
    """
    found = set()
    for pid in pids:
        try:
            for permissions, path in _mappings(pid):
                if permissions[1:2] == "w" and permissions.endswith("s"):
                    for root in roots:
                        prefix = root.rstrip("/") + "/"
                        if path.startswith(prefix):
                            found.add(path[len(prefix) :])
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def boot_seconds() -> float:
    """Now, as `processes_since` counts time."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if os.path.isdir("/proc/self") else 0.0


def processes_since(moment: float) -> list[int]:
    """The processes on this machine that were started after `moment` of `boot_seconds`, or up to a second
    before."""
    if not os.path.isdir("/proc/self"):
        return []
    ticks = os.sysconf("SC_CLK_TCK")
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stream:
                    # The command, in parentheses, may contain anything; the start is the 20th field after it.
                    started = int(stream.read().rpartition(b")")[2].split()[19]) / ticks
            except (FileNotFoundError, ProcessLookupError):
                continue
            if started > moment - 1:
                found.append(int(name))
    return found


def _below(path: str, prefixes: tuple[str, ...]) -> bool:
    return any(path == prefix or path.startswith(prefix + "/") for prefix in prefixes)


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:  # closed meanwhile
        return ""


def _mappings(pid: int) -> Iterator[tuple[str, str]]:
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(None, 5)
            if len(fields) == 6 and fields[5].startswith("/"):
                yield fields[1], fields[5]

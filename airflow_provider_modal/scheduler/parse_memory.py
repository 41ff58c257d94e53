"""How much memory may the processes of the parse phase take?

A file's process that asks for too much gets a MemoryError, which becomes an import error, before its
neighbours are out of memory. Callbacks are the user's work, like tasks, and may take what there is.

The process that listens to all of them has a limit, too: a file that writes to the wrong descriptor can
announce a message of gigabytes, for which Airflow makes room at once.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1024**2
LISTENER_BYTES = 1024 * MIB
"""What the listening process may take on top of what it has at the start."""


class MemoryLimits:
    """The limits of one process and of those that it forks; for the whole life of that process.

    :param per_file: MiB for each file's process, as ``scheduler.parse_memory``; 0 for no limit. What is only
        reserved does not count, what the process shares with its parent does.
    """

    def __init__(self, per_file: int) -> None:
        self._per_file = per_file * MIB or resource.RLIM_INFINITY
        self._next = self._per_file

    def apply(self) -> None:
        """Limit this process, and its children from now on."""
        self._set_soft(_used() + LISTENER_BYTES)
        os.register_at_fork(after_in_child=self._in_child)

    @contextmanager
    def forking(self, *, callbacks: bool) -> Iterator[None]:
        """Say, for the time of the block, whether what is forked executes callbacks."""
        self._next = resource.RLIM_INFINITY if callbacks else self._per_file
        try:
            yield
        finally:
            self._next = self._per_file

    def _in_child(self) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._set_soft(self._next)

    @staticmethod
    def _set_soft(wanted: int) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY and (wanted == resource.RLIM_INFINITY or wanted > hard):
            wanted = hard
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def _used() -> int:
    """Return how many bytes count for this process's limit."""
    [line] = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:")
    ]
    return int(line.split()[1]) * 1024

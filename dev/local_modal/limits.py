"""What a container may use, and what happens when it uses more.

As in Modal's cloud (https://modal.com/docs/guide/resources) a plain `memory=N` or `cpu=N` is a request and no
limit; only the second number of `memory=(request, limit)` and `cpu=(request, limit)` is one. A container that
exceeds its memory limit is killed as a whole; one that wants more processor time gets less. A core is one
processor of this machine, as the kernel counts them: the harder reading of Modal's "physical core".

Where control groups can't be had, memory is watched: the container is killed a moment after it exceeded its
limit, and processor time isn't limited.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from modal_proto import api_pb2 as api

from local_modal.cgroups import CgroupError, Cgroups, Group, remove_stale

log = logging.getLogger(__name__)

NO_CGROUPS = "LOCAL_MODAL_NO_CGROUPS"
WATCH_SECONDS = 0.1
"""Between two looks at the memory of a container that has a limit."""
WATCHED = "watched"
RECORD = "cgroups.json"
MIB = 2**20


class Limits:
    """The limits that this machine allows, for all containers of a server."""

    def __init__(self, state_dir: Path) -> None:
        self._record = state_dir / RECORD
        self._name = "local-modal-" + hashlib.sha256(str(state_dir).encode()).hexdigest()[:12]
        self._cgroups: Cgroups | None = None
        self._reason = "not examined yet"
        self._containers: dict[str, ContainerLimits] = {}

    def start(self, cgroups: bool = True) -> None:
        """Remove the groups of a former server that was killed, find out what is possible. Blocks.

        Args:
            cgroups: False to do without control groups.
        """
        self._remove_stale()
        if not cgroups:
            self._reason = f"{NO_CGROUPS} is set"
            return
        try:
            self._cgroups = Cgroups.find(self._name)
        except CgroupError as error:
            self._reason = str(error)
            return
        self._reason = ""
        # In one step: the server may be killed at any moment.
        written = self._record.with_suffix(".new")
        written.write_text(json.dumps([str(path) for path in self._cgroups.directories]))
        written.replace(self._record)

    def stop(self) -> None:
        """Remove the server's groups. Blocks."""
        self._remove_stale()
        self._cgroups = None

    def _remove_stale(self) -> None:
        if not self._record.exists():
            return
        try:
            directories = tuple(Path(path) for path in json.loads(self._record.read_text()))
        except (ValueError, TypeError) as error:
            log.warning("%s is ignored, control groups may be left: %s", self._record, error)
            directories = ()
        try:
            remove_stale(directories)
        except OSError as error:
            log.warning("Control groups of containers could not be removed: %s", error)
            return
        self._record.unlink()

    @property
    def memory(self) -> str:
        """How memory limits are enforced: "cgroup v1", "cgroup v2" or "watched"."""
        return f"cgroup v{self._cgroups.version}" if self._cgroups else WATCHED

    @property
    def cpu(self) -> str:
        """How processor limits are enforced; empty if they aren't."""
        if self._cgroups is None or not self._cgroups.controls_cpu:
            return ""
        return f"cgroup v{self._cgroups.version}"

    def missing(self) -> list[str]:
        """What the kernel doesn't enforce here, a phrase each."""
        gaps = []
        if self._cgroups is None:
            gaps.append(f"memory limits are enforced by watching, not by the kernel ({self._reason})")
        if not self.cpu:
            gaps.append(f"processor limits are not enforced ({self._reason or 'no cpu controller'})")
        return gaps

    def container(self, task_id: str, resources: api.Resources) -> ContainerLimits:
        """The limits of one container, in force for all processes that join, until `close_container`.

        Raises:
            OSError: the kernel refuses them.
        """
        memory, cpus = resources.memory_mb_max * MIB, resources.milli_cpu_max / 1000
        group = None
        if self._cgroups is not None and (memory or cpus):
            group = self._cgroups.create(task_id, memory, cpus)
        limits = self._containers[task_id] = ContainerLimits(memory, group)
        return limits

    def close_container(self, task_id: str) -> None:
        """Remove what enforces a container's limits, if it has got that far. Blocks for milliseconds.

        Raises:
            OSError: a process of it can't be ended.
        """
        if (limits := self._containers.pop(task_id, None)) is not None:
            limits.close()


class ContainerLimits:
    """One container's limits."""

    def __init__(self, memory_bytes: int, group: Group | None) -> None:
        self.memory_bytes = memory_bytes
        self._group = group
        self._exceeded = False

    @property
    def counts_memory(self) -> bool:
        """Whether the container's memory is limited, so that pages it shares with a parent would be missing
        from the count.
        """
        return self.memory_bytes > 0

    @property
    def procs(self) -> list[str]:
        """The files into which the container's first process writes "0" before it starts others."""
        return self._group.procs if self._group else []

    async def watch(self, pids: Callable[[], Iterable[int]], kill: Callable[[], None]) -> None:
        """Until cancelled, `kill` the container (again and again) once it has run out of memory.

        With a group the kernel has killed one of its processes by then, with version 1 not all of them.
        """
        while self.memory_bytes:
            await asyncio.sleep(WATCH_SECONDS)
            if self._group is None:
                self._exceeded = self._exceeded or self._too_much(list(pids()))
            if self.out_of_memory:
                kill()

    def _too_much(self, pids: list[int]) -> bool:
        # Resident sizes count shared pages once per process; only when they are too much is it worth the time
        # to ask for the proportional ones.
        return (
            sum(resident(pid) for pid in pids) > self.memory_bytes
            and sum(proportional(pid) or resident(pid) for pid in pids) > self.memory_bytes
        )

    @property
    def out_of_memory(self) -> bool:
        """Whether the limit has killed."""
        if self._exceeded or self._group is None or not self.memory_bytes:
            return self._exceeded
        self._exceeded = self._group.oom_kills() > 0
        return self._exceeded

    @property
    def exit_note(self) -> str:
        """Why the container was killed, as a predicate; empty if not by a limit."""
        if not self.out_of_memory:
            return ""
        return f"ran out of memory: its limit is {self.memory_bytes // MIB} MiB"

    def close(self) -> None:
        """Remove the group. Blocks for milliseconds."""
        if self._group is not None:
            self._group.remove()


def resident(pid: int) -> int:
    """The bytes of a process that are in memory, shared ones included; 0 if it has ended."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmRSS:")


def proportional(pid: int) -> int:
    """The bytes of a process in memory, those shared by n processes counted as an n-th; 0 if it has ended
    or the kernel doesn't tell.
    """
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def _kilobytes(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass  # ended; or on its way out, when its memory map is gone
    return 0

"""Control groups: limits on memory and processor time that the kernel itself enforces.

One group of this server below the group that it runs in, so that what limits the server limits its containers
as well; in it one group per container. Version 1 is used where its `memory` controller is mounted, version 2
where the server's group may hand its controllers on.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

CPU_PERIOD_US = 100_000
CPU_QUOTA_MIN_US = 1_000
"""The kernel's minimum."""
REMOVAL_SECONDS = 5.0
"""How long a killed process may still keep its group busy."""


class CgroupError(Exception):
    """Control groups can't be used; the message says why."""


@dataclass(frozen=True)
class Group:
    """The group of one container: one directory per controller (version 1), or one for all."""

    version: int
    directories: tuple[Path, ...]
    memory: Path

    @property
    def procs(self) -> list[str]:
        """The files into which a process writes "0" to join."""
        return [str(directory / "cgroup.procs") for directory in self.directories]

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed because the group's memory was used up."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        for line in (self.memory / name).read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
        return 0

    def remove(self) -> None:
        """End whatever is left in it and remove it; blocks for as long as that takes, a few milliseconds.

        Raises:
            OSError: a process in it can't be ended.
        """
        for directory in self.directories:
            _remove(directory)


class Cgroups:
    """The server's own group, in which it makes one per container.

    Use `find`; `close` at the end, or to start afresh. `bases` are the group's directories by controller.
    """

    def __init__(self, version: int, bases: dict[str, Path]) -> None:
        self.version = version
        self.bases = bases

    @classmethod
    def find(cls, name: str) -> Cgroups:
        """Try whether a group `name` of the server can do what is needed. It is there only when the first
        container needs it: a server that is killed before leaves nothing.

        Raises:
            CgroupError: it can't.
        """
        try:
            mounts = Path("/proc/self/mountinfo").read_text()
            membership = Path("/proc/self/cgroup").read_text()
        except OSError as error:
            raise CgroupError(f"no control groups here: {error}") from None
        own = own_groups(mounts, membership)
        if not own:
            raise CgroupError("no control group file system is mounted")
        try:
            if "memory" in own:
                found = cls(1, {key: path / name for key, path in own.items() if key in ("memory", "cpu")})
            else:
                found = cls(2, dict.fromkeys(_delegate(own[""]), own[""] / name))
        except OSError as error:
            raise _refused(error) from None
        try:
            found.create("trial", 64 * 2**20, 1.0).oom_kills()
        except OSError as error:
            raise _refused(error) from None
        finally:
            found.close()
        return found

    @property
    def directories(self) -> tuple[Path, ...]:
        """What this server has made, to be given to `remove_stale` should it not get to `close`."""
        return tuple(dict.fromkeys(self.bases.values()))

    @property
    def controls_cpu(self) -> bool:
        """Whether processor time can be limited as well."""
        return "cpu" in self.bases

    def _open(self) -> None:
        for directory in self.directories:
            directory.mkdir(exist_ok=True)
        if self.version == 2:
            controllers = " ".join(f"+{name}" for name in self.bases)
            (self.bases["memory"] / "cgroup.subtree_control").write_text(controllers)

    def create(self, name: str, memory_bytes: int, cpus: float) -> Group:
        """A group for one container; 0 is no limit.

        Raises:
            OSError: the kernel refuses.
        """
        group = Group(
            self.version, tuple(base / name for base in self.directories), self.bases["memory"] / name
        )
        if not self.bases["memory"].is_dir():
            self._open()
        for directory in group.directories:
            directory.mkdir()
        if memory_bytes:
            self._limit_memory(group.memory, memory_bytes)
        if cpus and self.controls_cpu:
            self._limit_cpu(self.bases["cpu"] / name, cpus)
        return group

    def _limit_memory(self, directory: Path, limit: int) -> None:
        if self.version == 1:
            (directory / "memory.limit_in_bytes").write_text(str(limit))
            with_swap = directory / "memory.memsw.limit_in_bytes"
            if with_swap.exists():
                with_swap.write_text(str(limit))
            return
        (directory / "memory.max").write_text(str(limit))
        (directory / "memory.oom.group").write_text("1")
        swap = directory / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")

    def _limit_cpu(self, directory: Path, cpus: float) -> None:
        quota = max(CPU_QUOTA_MIN_US, int(cpus * CPU_PERIOD_US))
        try:
            if self.version == 1:
                (directory / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
                (directory / "cpu.cfs_quota_us").write_text(str(quota))
            else:
                (directory / "cpu.max").write_text(f"{quota} {CPU_PERIOD_US}")
        except OSError as error:
            # Version 1 refuses more than a surrounding group allows; that stricter limit is in force then.
            if error.errno != errno.EINVAL:
                raise

    def close(self) -> None:
        """Remove the server's group."""
        remove_stale(self.directories)


def own_groups(mountinfo: str, membership: str) -> dict[str, Path]:
    """The directories of the group that a process is in: by controller for version 1, "" for version 2, from
    the texts of its /proc files. Groups outside of what is mounted are left out.
    """
    paths: dict[str, str] = {}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    found: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        mounted, mount_point = before.split(" ")[3:5]
        names = [""] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else []
        for name in names:
            if name not in paths:
                continue
            path = paths[name]
            if not (mounted == "/" or path == mounted or path.startswith(f"{mounted}/")):
                continue
            inside = path if mounted == "/" else path[len(mounted) :]
            found.setdefault(name, Path(mount_point, inside.lstrip("/")))
    return found


def _refused(error: OSError) -> CgroupError:
    return CgroupError(f"{error.filename or 'control groups'}: {error.strerror}")


def remove_stale(directories: tuple[Path, ...]) -> None:
    """Remove a server's groups with everything in them; those that don't exist (any more) are fine.

    Raises:
        OSError: a process in one of them can't be ended.
    """
    for directory in directories:
        if directory.is_dir():
            for child in directory.iterdir():
                if child.is_dir():
                    _remove(child)
            _remove(directory)


def _delegate(own: Path) -> list[str]:
    """Make the version 2 group of this process hand on its controllers; returns which."""
    available = (own / "cgroup.controllers").read_text().split()
    if "memory" not in available:
        raise CgroupError(f"{own}/cgroup.controllers: the memory controller isn't delegated")
    wanted: list[str] = [name for name in ("memory", "cpu") if name in available]
    control = own / "cgroup.subtree_control"
    if not set(wanted) <= set(control.read_text().split()):
        # Only a group without processes of its own may hand on controllers, so the server moves down; a
        # neighbour can't be moved, which the kernel then says with EBUSY.
        if (own / "cgroup.procs").read_text().split() == [str(os.getpid())]:
            leaf = own / "local-modal-server"
            leaf.mkdir(exist_ok=True)
            (leaf / "cgroup.procs").write_text("0")
        control.write_text(" ".join(f"+{name}" for name in wanted))
    return wanted


def _remove(directory: Path) -> None:
    deadline = time.monotonic() + REMOVAL_SECONDS
    while True:
        try:
            for pid in (directory / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass  # gone meanwhile
        try:
            directory.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.002)

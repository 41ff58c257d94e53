"""Was it the container's memory?

A process that the kernel kills for want of memory ends by SIGKILL like any other; only the control group's
counter tells. Where a container that exceeds its limit is ended as a whole, only what was measured before
can. See https://docs.kernel.org/admin-guide/cgroup-v2.html: memory.events, memory.current.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

NEAR = 0.8
"""The part of its limit from which on a container that is lost was most likely out of memory. It grows on
between the last measurement and its end."""
FAR = 1.1
"""What is beyond this part of the limit was not measured of this container alone."""
_MIB = 2**20
_NO_LIMIT = 2**60
"""How version 1 of control groups says it, or a little more."""


class _Files(NamedTuple):
    """What a version of control groups calls its files, and its share of memory that can be taken back."""

    usage: str
    limit: str
    cache: str


_V1 = _Files("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file")
_V2 = _Files("memory.current", "memory.max", "inactive_file")
_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))


def oom_kills(counters: tuple[Path, ...] = _COUNTERS) -> int | None:
    """Return how many processes of this container the kernel killed for memory; None if it does not say."""
    for path in counters:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.isdigit():
                return int(value)
    return None


def rose(before: int | None, after: int | None) -> bool:
    """Return whether the kernel killed something for memory between two readings of :func:`oom_kills`."""
    return before is not None and after is not None and after > before


def used() -> int | None:
    """Return how many MiB this container uses, without what the kernel could take back; None if unknown."""
    try:
        group = _control_group()
        if group is None:
            return None
        files = _V2 if (group / _V2.usage).exists() else _V1
        limit = (group / files.limit).read_text().strip()
        if limit == "max" or int(limit) >= _NO_LIMIT:
            # Not this container's own group, then.
            return None
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        in_use = int((group / files.usage).read_text()) - int(statistics.get(files.cache, 0))
        return max(in_use, 0) // _MIB
    except (OSError, ValueError) as error:
        log.debug("the container's memory can't be measured: %s", error)
        return None


def _control_group(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Path | None:
    """Return the folder of this process's control group for memory."""
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            folder = root / controllers / path.strip("/")
            if any((folder / files.usage).exists() for files in (_V1, _V2)):
                return folder
    return None


def advice(profile: str, limit: int | None) -> str:
    """Return what to do for a task that needs more memory than its container has.

    :param profile: the task's worker profile.
    :param limit: the container's in MiB, if it is known.
    """
    more = 2 * limit if limit is not None else "more MiB"
    return (
        f"set executor_config={{'modal': {{'memory': {more}}}}}, or raise workers.{profile}.memory in "
        "config.yaml and run: modalflow create"
    )


def reason(profile: str, limit: int | None) -> str:
    """Return the sentence for a task that ran out of memory; parameters as of :func:`advice`."""
    at = f" at the container's limit of {limit} MiB" if limit is not None else ""
    return f"out of memory: the task was killed{at}; {advice(profile, limit)}"


def reason_of_lost(container: str, profile: str, limit: int | None, measured: int | None) -> str | None:
    """Return the sentence for a container that was most likely lost for memory; None if not so.

    :param measured: MiB that it used at most; further parameters as of :func:`advice`.
    """
    if limit is None or measured is None or not NEAR * limit <= measured <= FAR * limit:
        return None
    return (
        f"out of memory, most likely: container {container}, which ran this task, was lost while it used "
        f"{measured} MiB of its limit of {limit}; {advice(profile, limit)}"
    )

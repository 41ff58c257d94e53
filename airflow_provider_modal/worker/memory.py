"""Was it the container's memory?

A process that the kernel kills for want of memory ends by SIGKILL like any other; only the control group's
counter tells. See https://docs.kernel.org/admin-guide/cgroup-v2.html, memory.events.
"""

from __future__ import annotations

from pathlib import Path

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

"""Where a process's control groups are, and what is written into them."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_modal.cgroups import Cgroups, Group, own_groups

V1 = """\
30 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
"""
V2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V2_PART = "35 24 0:30 /docker/abc /sys/fs/cgroup ro,nosuid - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("mounts", "membership", "found"),
    [
        (
            V1,
            "4:memory:/jobs/7\n2:cpu,cpuacct:/\n",
            {
                "memory": "/sys/fs/cgroup/memory/jobs/7",
                "cpu": "/sys/fs/cgroup/cpu,cpuacct",
                "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
            },
        ),
        (V2, "0::/user.slice/a.scope\n", {"": "/sys/fs/cgroup/user.slice/a.scope"}),
        (V2_PART, "0::/docker/abc/x\n", {"": "/sys/fs/cgroup/x"}),
        # Another group than the one that is mounted here can't be reached.
        (V2_PART, "0::/docker/abcd\n", {}),
        ("24 1 8:1 / / rw - ext4 /dev/sda rw\n", "0::/\n", {}),
    ],
)
def test_own_groups(mounts: str, membership: str, found: dict[str, str]) -> None:
    assert own_groups(mounts, membership) == {name: Path(path) for name, path in found.items()}


def group(version: int, base: Path, **limits: float) -> Group:
    """Made in an ordinary directory, where a limit is a file of that name."""
    base.mkdir(exist_ok=True)  # an ordinary directory has no controllers to be handed on
    made = Cgroups(version, {"memory": base, "cpu": base})
    return made.create("ta-1", int(limits.get("memory", 0)), limits.get("cpus", 0.0))


@pytest.mark.parametrize(
    ("version", "limits", "files"),
    [
        (1, {"memory": 4096}, {"memory.limit_in_bytes": "4096"}),
        (1, {"cpus": 0.5}, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}),
        (2, {"memory": 4096}, {"memory.max": "4096", "memory.oom.group": "1"}),
        (2, {"cpus": 0.001}, {"cpu.max": "1000 100000"}),
        (2, {}, {}),
    ],
)
def test_limits_are_written(
    tmp_path: Path, version: int, limits: dict[str, float], files: dict[str, str]
) -> None:
    made = group(version, tmp_path, **limits)
    assert made.procs == [str(tmp_path / "ta-1" / "cgroup.procs")]
    assert {path.name: path.read_text() for path in made.memory.iterdir()} == files


def test_kills_are_counted_whatever_the_version(tmp_path: Path) -> None:
    first, second = group(1, tmp_path / "a"), group(2, tmp_path / "b")
    (first.memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    (second.memory / "memory.events").write_text("low 0\nmax 5\noom 1\noom_kill 3\noom_group_kill 1\n")
    assert (first.oom_kills(), second.oom_kills()) == (2, 3)

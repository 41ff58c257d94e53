"""Functions with limits on what they may use, and one with requests only."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import modal

app = modal.App("hungry")
EAT = "import sys, time; data = b'x' * int(sys.argv[1]); time.sleep(60)"


@app.function(memory=(128, 256), timeout=60)
def eat(key: str, megabytes: int, how: str) -> int:
    """On its first attempt tries to use that much, itself or in a child process; returns the attempt."""
    counts = modal.Dict.from_name("hungry", create_if_missing=True)
    attempt: int = counts.get(key, 0) + 1
    counts[key] = attempt
    if attempt == 1 and how == "self":
        data = b"x" * (megabytes * 2**20)
        return len(data)
    if attempt == 1:
        subprocess.run([sys.executable, "-c", EAT, str(megabytes * 2**20)])
        time.sleep(60)  # the child was killed; nothing but the container's own end ends this
    return attempt


@app.function(memory=128)
def exceed_request(megabytes: int) -> int:
    return len(b"x" * (megabytes * 2**20))


@app.function(cpu=(0.1, 0.25))
def spin(seconds: float) -> float:
    """The share of a processor that it got."""
    begin, used = time.monotonic(), time.process_time()
    while time.monotonic() < begin + seconds:
        pass
    return (time.process_time() - used) / (time.monotonic() - begin)


@app.function(cpu=(0.1, 4.0), memory=(64, 512))
def groups() -> list[str]:
    return [os.environ["MODAL_TASK_ID"], Path("/proc/self/cgroup").read_text()]

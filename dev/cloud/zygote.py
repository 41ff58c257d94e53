"""A script: a process that forks a child per line of its input and answers how it went, in JSON."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def fork() -> dict[str, object]:
    """Fork a child that waits until it is killed, or its parent is."""
    reader, writer = os.pipe()
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.write(writer, b"x")
        while True:
            signal.pause()
    os.read(reader, 1)
    seconds = time.perf_counter() - began
    os.close(reader)
    os.close(writer)
    try:
        os.close(os.pidfd_open(child))
        pidfd = True
    except OSError:
        pidfd = False
    return {
        "child": child,
        "fork_ms": round(1000 * seconds, 2),
        "threads": len(os.listdir("/proc/self/task")),
        "pidfd": pidfd,
        "started": _STARTED,
    }


_STARTED = time.time()

if __name__ == "__main__":
    for _ in sys.stdin:
        print(json.dumps(fork()), flush=True)

"""Functions that the zygote's tests run in its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from airflow_provider_modal.errors import NotFoundError

warmed = False


def warm() -> None:
    global warmed
    warmed = True


def broken_warm_up() -> None:
    raise RuntimeError("no such plugin")


def warm_up_broken_once() -> None:
    """Fail the first time; ONCE is a file that remembers."""
    once = Path(os.environ["ONCE"])
    if not once.exists():
        once.touch()
        raise RuntimeError("no such plugin")


def threaded_warm_up() -> None:
    threading.Thread(target=time.sleep, args=(60,), name="a-plugin", daemon=True).start()


def facts(variable: str = "") -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "variable": os.environ.get(variable),
        "warmed": warmed,
        "threads": threading.active_count(),
        "modal": "modal" in sys.modules,
        "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
    }


def echo(value: Any) -> Any:
    return value


def big(size: int) -> str:
    return "x" * size


def unjsonable() -> object:
    return object()


def raise_plain() -> None:
    raise ValueError("wrong")


def raise_ours() -> None:
    raise NotFoundError("no such run")


def exit_with(code: int) -> None:
    sys.exit(code)


def die(signum: int) -> None:
    os.kill(os.getpid(), signum)


def sleep(seconds: float = 60) -> None:
    time.sleep(seconds)


def meet(folder: str, count: int) -> None:
    """Wait until so many processes are here at the same time."""
    (Path(folder) / str(os.getpid())).touch()
    while len(os.listdir(folder)) < count:
        time.sleep(0.01)


def leave_behind(path: str, seconds: float = 60) -> list[int]:
    """Start one process in the same session and one forked child in a group of its own; return their pids."""
    shell = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
    forked = os.fork()
    if forked == 0:
        os.setpgid(0, 0)
        time.sleep(seconds)
        os._exit(0)
    with open(path, "w") as file:
        file.write(f"{shell.pid} {forked}")
    return [shell.pid, forked]


def leave_behind_and_wait(path: str) -> None:
    leave_behind(path)
    time.sleep(60)


def orphan(path: str) -> int:
    """Leave a grandchild in a session of its own, whose parent is gone."""
    middle = os.fork()
    if middle == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(0.2)
            os._exit(0)
        os._exit(0)
    os.waitpid(middle, 0)
    return middle


def daemon() -> int:
    """Leave a process in a session of its own; return its pid."""
    return subprocess.Popen(["sleep", "60"], start_new_session=True).pid


def ignore_sigterm(ready: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(ready).touch()
    time.sleep(60)

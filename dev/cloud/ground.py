"""What a container finds under its feet: names, clocks, processes, the mounted volume."""

from __future__ import annotations

import ctypes
import getpass
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
ZYGOTE = Path(__file__).with_name("zygote.py")


def identity() -> dict[str, Any]:
    """Who this container believes to be."""
    marker = Path("/tmp/cloud-check-marker")
    found = marker.exists()
    marker.write_text("x")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "?"
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": user,
        "uid": os.getuid(),
        "task_id": os.environ.get("MODAL_TASK_ID", ""),
        "found_marker": found,
        "monotonic": time.monotonic(),
        "python": sys.version.split()[0],
        "kernel": " ".join(os.uname()[2:4]),
    }


def process_tools() -> dict[str, Any]:
    """The means by which child processes are watched and never left behind."""
    adopted = False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0:
        shell = subprocess.run(
            ["sh", "-c", "sleep 30 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE, check=True
        )
        orphan = int(shell.stdout)
        adopted = _wait(lambda: _parent(orphan) == os.getpid())
        os.kill(orphan, signal.SIGKILL)
        if adopted:
            os.waitpid(orphan, 0)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    return {"subreaper": adopted, "zygote": ask_zygote()}


def start_zygote() -> subprocess.Popen[str]:
    """A single-threaded process that forks on request."""
    return subprocess.Popen(
        [sys.executable, str(ZYGOTE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ask_zygote(zygote: subprocess.Popen[str] | None = None) -> dict[str, Any]:
    """Have a zygote fork twice, then kill it and see whether its children die with it."""
    zygote = zygote or start_zygote()
    assert zygote.stdin is not None and zygote.stdout is not None
    answers = []
    for _ in range(2):
        zygote.stdin.write("fork\n")
        zygote.stdin.flush()
        if not select.select([zygote.stdout], [], [], 20)[0]:
            zygote.kill()
            return {"answered": False}
        line = zygote.stdout.readline()
        if not line:
            return {"answered": False}
        answers.append(json.loads(line))
    zygote.kill()
    zygote.wait()
    gone = _wait(lambda: all(_state(answer["child"]) in ("", "Z") for answer in answers))
    return {**answers[1], "answered": True, "children_die_with_it": gone, "pid": zygote.pid}


def _wait(condition: Callable[[], bool], seconds: float = 3.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _state(pid: int) -> str:
    return (_stat(pid) or [""])[0]


def _parent(pid: int) -> int:
    return int((_stat(pid) or ["", "0"])[1])


# -- a mounted volume


def mount() -> Path:
    """Where the volume is; the variable says so because a weaker local server can't mount at any path."""
    return Path(os.environ["CLOUD_CHECK_VOLUME"])


def upload(volume: Any, name: str, content: str) -> float:
    """Write a file through the SDK; returns the seconds it took."""
    began = time.monotonic()
    with volume.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(content.encode()), f"/{name}")
    return time.monotonic() - began


def download(volume: Any, name: str) -> str | None:
    """Read a file through the SDK; None if there is none."""
    try:
        return b"".join(volume.read_file(name)).decode()
    except FileNotFoundError:
        return None


def on_mount(name: str) -> str | None:
    """Read a file where the volume is mounted; None if there is none."""
    try:
        return (mount() / name).read_text()
    except FileNotFoundError:
        return None


def outcome(action: Callable[[], Any]) -> str:
    """'returned', or the name and text of the exception."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "returned"


def commit_with_an_open_file(volume: Any, name: str) -> dict[str, Any]:
    """Commit while a file is half written."""
    with (mount() / name).open("w") as file:
        file.write("half")
        file.flush()
        what = outcome(volume.commit)
        committed = download(volume, name)
        file.write(" and half")
    return {"commit": what, "read_back": committed}


def reload_with_an_open_file(volume: Any, name: str) -> dict[str, Any]:
    """Reload while a file is open, and once it is closed."""
    path = mount() / name
    path.write_text("x")
    volume.commit()
    with path.open():
        open_file = outcome(volume.reload)
    return {"open": open_file, "closed": outcome(volume.reload)}


def small_files(volume: Any, prefix: str, count: int) -> dict[str, list[float]]:
    """Write and read small files through the SDK; the seconds of each."""
    writes, reads = [], []
    for number in range(count):
        writes.append(upload(volume, f"{prefix}/{number}.json", '{"value": 1}'))
        began = time.monotonic()
        download(volume, f"{prefix}/{number}.json")
        reads.append(time.monotonic() - began)
    return {"writes": writes, "reads": reads}

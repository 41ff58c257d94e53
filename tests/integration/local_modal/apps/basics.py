"""Functions whose results show where and how they ran."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import modal

app = modal.App(os.environ.get("TEST_APP_NAME", "basics"))
image = (
    modal.Image.debian_slim()
    .env({"FROM_IMAGE": "image", "SHADOWED": "image"})
    .add_local_file(__file__, "/opt/deep/er/copied.py")
)
volume = modal.Volume.from_name("basics-volume", create_if_missing=True, version=2)
secrets = [
    modal.Secret.from_dict({"SHADOWED": "first secret", "SECRET": "s3cret"}),
    modal.Secret.from_dict({"SHADOWED": "second secret", "DATA_DIR": "/data/inner"}),
]


@app.function(image=image, secrets=secrets, volumes={"/data": volume})
def describe() -> dict[str, object]:
    Path(os.environ.get("TMPDIR", "/tmp"), "left-behind").write_text("x")
    Path.home().joinpath("left-behind").write_text("x")
    return {
        "pid": os.getpid(),
        "hostname": socket.gethostname(),
        "cwd": os.getcwd(),
        "file": __file__,
        "environ": dict(os.environ),
        "path": sys.path,
        "tmp": os.listdir("/tmp"),
        "home": os.path.expanduser("~"),
        "data_dir": os.environ["DATA_DIR"],
        "copied": os.path.exists("/opt/deep/er/copied.py"),
        "uid": os.getuid(),
        "processes": sum(name.isdigit() for name in os.listdir("/proc")),
    }


@app.function(max_containers=2)
def square(x: int) -> int:
    return x * x


@app.function()
def fail(message: str) -> None:
    raise LookupError(message)


@app.function()
def size(data: bytes) -> bytes:
    return data + b"!"


@app.function()
def talk(lines: int, width: int) -> str:
    for number in range(lines):
        print(f"{number:06d}" + "x" * width)
    print("to stderr", file=sys.stderr)
    return os.environ["MODAL_TASK_ID"]


@app.function(timeout=60)
def nested(x: int) -> int:
    return square.remote(x) + 1


@app.function(timeout=60)
def sleepy(seconds: float) -> str:
    time.sleep(seconds)
    return "woke up"


@app.function(timeout=120)
def stands_still(key: str, seconds: float) -> float:
    """Watches the clock until this process has stood still for so long; returns the longest time it did."""
    notes = modal.Dict.from_name("basics-notes", create_if_missing=True)
    notes[key] = "watching"
    began = last = time.monotonic()
    longest = 0.0
    while longest < seconds and last - began < 60.0:
        time.sleep(0.05)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest


@app.function(timeout=60)
def gated(key: str) -> str:
    """Runs until somebody puts `key` into the Dict."""
    notes = modal.Dict.from_name("basics-notes", create_if_missing=True)
    while key not in notes:
        time.sleep(0.05)
    return os.environ["MODAL_TASK_ID"]


@app.function(timeout=60)
def stubborn(path: str) -> str:
    """Notes its cancellation in a Dict and goes on."""
    notes = modal.Dict.from_name("basics-notes", create_if_missing=True)
    try:
        notes[path] = "running"
        time.sleep(30)
    except modal.exception.InputCancellation:
        notes[path] = "cancelled"
        raise
    return "finished"


@app.function(timeout=60)
def reluctant(key: str, heed: bool) -> str:
    """Runs until somebody puts `key` into the Dict, or until an interrupt if it is to heed it."""
    events = modal.Queue.from_name("basics-events", create_if_missing=True)
    notes = modal.Dict.from_name("basics-notes", create_if_missing=True)
    me = os.environ["MODAL_TASK_ID"]
    begun = False
    while True:
        try:
            if not begun:
                # Who reads this may interrupt before it returns here.
                begun = True
                events.put(("begin", me), partition=key)
            while key not in notes:
                time.sleep(0.05)
            return me
        except KeyboardInterrupt:
            if heed:
                return me
            events.put(("interrupted", me), partition=key)


@app.function(timeout=2)
def too_slow(ignore_signals: bool) -> None:
    import signal

    if ignore_signals:
        for signum in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(signum, signal.SIG_IGN)
    subprocess.Popen(["sleep", "1234"])
    time.sleep(60)


@app.function(retries=modal.Retries(max_retries=2, initial_delay=0.0))
def flaky(key: str) -> int:
    counts = modal.Dict.from_name("basics-notes", create_if_missing=True)
    attempt = counts.get(key, 0) + 1
    counts[key] = attempt
    if attempt < 3:
        raise RuntimeError(f"attempt {attempt}")
    return attempt


@app.function(timeout=60)
def attempts(key: str, until: int, how: str) -> tuple[int, str]:
    """Dies until its `until`-th attempt."""
    counts = modal.Dict.from_name("basics-notes", create_if_missing=True)
    attempt = counts.get(key, 0) + 1
    counts[key] = attempt
    if attempt < until:
        if how == "exit":
            os._exit(3)
        time.sleep(60)
    return attempt, os.environ["MODAL_TASK_ID"]


@app.function(scaledown_window=2)
def short_lived() -> str:
    return os.environ["MODAL_TASK_ID"]


@app.function()
def generate(count: int):  # type: ignore[no-untyped-def]
    yield from range(count)


@app.function(timeout=60)
def orphans() -> None:
    """Leaves a daemon behind that has left the session."""
    subprocess.Popen(["sleep", "4321"], start_new_session=True)
    time.sleep(60)

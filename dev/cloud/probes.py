"""The functions that run in Modal's containers. `CLOUD_CHECK_NAME` names the app and all its objects;
containers have it from the functions' own environment, so that they find the same ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import modal

from cloud import ground
from cloud.figures import ATTEMPTS, LIMIT_SECONDS, PERIOD_SECONDS

NAME = os.environ.get("CLOUD_CHECK_NAME", "cloud-check")

app = modal.App(NAME)
image = modal.Image.debian_slim(python_version=f"{sys.version_info.major}.{sys.version_info.minor}").env(
    {"FROM_IMAGE": "image", "IN_BOTH": "image"}
)
environ = {"CLOUD_CHECK_NAME": NAME}
volume = modal.Volume.from_name(NAME, create_if_missing=True, version=2)
mounted: dict[str, Any] = {
    "image": image,
    "volumes": {"/vol": volume},
    "env": {**environ, "CLOUD_CHECK_VOLUME": "/vol"},
    "timeout": 90,
}
plain: dict[str, Any] = {"image": image, "env": environ, "timeout": 90}


def notes() -> modal.Dict:
    """What functions leave for the one who asks, who can't see them otherwise once they have died."""
    return modal.Dict.from_name(NAME, create_if_missing=True)


# -- containers


@app.function(**plain)
def identity(hold: float = 0.0) -> dict[str, Any]:
    """Who the container is; `hold` keeps it busy, so that another call gets another one."""
    found = ground.identity()
    time.sleep(hold)
    return found


@app.function(**plain)
def process_tools() -> dict[str, Any]:
    """What the kernel offers for watching children."""
    return ground.process_tools()


@app.function(**plain)
def stamp() -> float:
    """When user code started, by this container's clock."""
    return time.time()


@app.function(**plain, single_use_containers=True)
def single_use() -> tuple[float, str]:
    """The same, always in a new container."""
    return time.time(), os.environ["MODAL_TASK_ID"]


@app.function(
    image=image,
    timeout=90,
    secrets=[
        modal.Secret.from_dict({"IN_BOTH": "first secret", "IN_SECRETS": "first secret", "IN_ALL": "secret"}),
        modal.Secret.from_dict({"IN_SECRETS": "second secret"}),
    ],
    env={**environ, "IN_ALL": "env="},
)
def variables() -> dict[str, str]:
    """This container's environment, as far as it was asked for."""
    names = ("FROM_IMAGE", "IN_BOTH", "IN_SECRETS", "IN_ALL", "EXTRA")
    return {name: os.environ[name] for name in names if name in os.environ}


# -- calls


@app.function(**plain)
def fail(text: str) -> None:
    """Ends with an exception of the standard library."""
    raise LookupError(text)


@app.function(**plain)
def sleeper(key: str, seconds: float) -> str:
    """Notes that it runs and what ends it early."""
    notes()[key] = "running"
    try:
        time.sleep(seconds)
    except BaseException as error:
        notes()[key] = f"{type(error).__name__}: {error}".rstrip(": ")
        raise
    return "slept"


@app.function(**plain, max_containers=1)
def lone() -> tuple[str, float, float]:
    """Takes a moment; says where and when."""
    began = time.time()
    time.sleep(0.2)
    return os.environ["MODAL_TASK_ID"], began, time.time()


@app.function(image=image, env=environ, timeout=LIMIT_SECONDS)
def endless(key: str) -> None:
    """Ignores whatever should end it, and notes it while it can."""
    began = time.time()
    events: list[tuple[str, float]] = []

    def event(what: str) -> None:
        events.append((what, round(time.time() - began, 2)))

    def beat() -> None:
        board = notes()
        while True:
            board[key] = {"events": events, "alive": round(time.time() - began, 2)}
            time.sleep(0.25)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: event(signal.Signals(number).name))
    threading.Thread(target=beat, daemon=True).start()
    while True:
        try:
            while True:
                time.sleep(0.1)
        except BaseException as error:
            event(type(error).__name__)


@app.function(**plain)
def crash(key: str, how: str) -> int:
    """Dies until its last attempt."""
    return _attempt(key, how)


@app.function(**plain, memory=(128, 256))
def hog(key: str) -> int:
    """Takes more memory than it may, until its last attempt."""
    return _attempt(key, "memory")


def _attempt(key: str, how: str) -> int:
    board = notes()
    attempts = board.get(key, [])
    attempts.append((time.time(), os.environ["MODAL_TASK_ID"]))
    board[key] = attempts
    if len(attempts) < (2 if how == "memory" else ATTEMPTS):
        if how == "exit":
            os._exit(3)
        if how == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        taken = [bytearray(os.urandom(2**20)) for _ in range(768)]
        board[f"{key} survived"] = len(taken)
    return len(attempts)


@app.function(**plain, schedule=modal.Period(seconds=PERIOD_SECONDS))
def scheduled() -> None:
    """Tells when the schedule fires."""
    modal.Queue.from_name(NAME, create_if_missing=True).put(time.time(), partition="scheduled")


# -- Dict and Queue


@app.function(**plain)
def put_if_absent(keys: list[str], value: str) -> list[str]:
    """The keys that were absent."""
    board = notes()
    return [key for key in keys if board.put(key, value, skip_if_exists=True)]


@app.function(**plain)
def put_later(partition: str, seconds: float) -> float:
    """Put an item after a while; returns when."""
    time.sleep(seconds)
    modal.Queue.from_name(NAME, create_if_missing=True).put("item", partition=partition)
    return time.time()


# -- the volume


@app.function(**mounted, max_containers=1)
def first(do: str, *arguments: Any) -> Any:
    """One of two containers that have the volume mounted."""
    return _with_volume(do, *arguments)


@app.function(**mounted, max_containers=1)
def second(do: str, *arguments: Any) -> Any:
    """The other one."""
    return _with_volume(do, *arguments)


@app.function(**mounted, single_use_containers=True)
def leaver(name: str, how: str, hold: float = 0.0) -> None:
    """Writes a file where the volume is mounted, doesn't commit, and goes."""
    (ground.mount() / name).write_text("uncommitted")
    time.sleep(hold)
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)


def _with_volume(do: str, *arguments: Any) -> Any:
    if do == "reload":
        return volume.reload()
    if do == "on_mount":
        return ground.on_mount(*arguments)
    return getattr(ground, do)(volume, *arguments)


# -- an unprivileged look at the machine, for the report's head line


@app.function(**plain)
def machine() -> str:
    """What runs the containers."""
    uname = " ".join(os.uname()[i] for i in (0, 2))
    dmesg = subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout
    return f"{uname}, gVisor" if "gVisor" in dmesg else uname

"""Functions that tell how their interpreter was started."""

from __future__ import annotations

import atexit
import builtins
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import modal

app = modal.App("forked")
startup = Path(__file__).with_name("forked_startup.py")
image = modal.Image.debian_slim()
notes = modal.Dict.from_name("forked-notes", create_if_missing=True)


def describe() -> dict[str, object]:
    ours = [name for name in os.environ if not name.startswith("MODAL_")]
    return {
        "environ": {name: os.environ[name] for name in sorted(ours)},
        "child environ": subprocess.check_output(["env"], text=True).count("MODAL_TASK_ID="),
        "modal": sorted(name for name in os.environ if name.startswith("MODAL_")),
        "path": sys.path,
        "argv": sys.argv,
        "descriptors": [int(name) <= 2 for name in sorted(os.listdir("/proc/self/fd"), key=int)[:3]],
        "sockets": sorted(_kinds()),
        "cwd": os.getcwd(),
        "session": os.getsid(0) == os.getpid(),
        "signals": {name: str(signal.getsignal(getattr(signal, name))) for name in ("SIGTERM", "SIGCHLD")},
        "streams": [(each.encoding, each.errors, each.isatty()) for each in (sys.stdout, sys.stderr)],
        "main": [sys.modules["__main__"].__name__, sys.modules["__main__"].__package__],
        "flags": str(sys.flags),
        "config": __import__("modal.config").config.user_config_path,
        "ours": [name for name in sys.modules if name.startswith("local_modal")],
        "modules": len(sys.modules) // 20,
        "threads": sorted(type(thread).__name__ for thread in threading.enumerate()),
    }


def _kinds() -> set[str]:
    """What the open descriptors are, without the numbers of the kernel."""
    kinds = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            kinds.add(os.readlink(f"/proc/self/fd/{name}").partition(":")[0])
        except FileNotFoundError:
            continue  # the one that listed the directory
    return {kind for kind in kinds if not kind.startswith("/proc")}


@app.function(image=image)
def inside() -> dict[str, object]:
    return describe()


@app.function(image=image, single_use_containers=True)
def chance() -> list[object]:
    """When user code began, and something that no two containers may have in common."""
    return [time.time(), random.random(), hash("x")]


@app.function(image=image, secrets=[modal.Secret.from_dict({"PYTHONHASHSEED": "7", "PYTHONOPTIMIZE": "1"})])
def with_variables() -> list[object]:
    return [sys.flags.optimize, hash("x"), describe()["path"]]


@app.function(image=image.add_local_file(startup, "/root/sitecustomize.py"))
def with_startup_code() -> bool:
    return hasattr(builtins, "CUSTOMIZED")


@app.function(image=image, timeout=60)
def ends(key: str) -> None:
    """Leaves a note when the interpreter ends in good order."""
    subprocess.Popen(["sleep", "9876"])
    atexit.register(lambda: notes.update({key: "ended"}))
    notes[key] = "running"


@app.function(image=image, timeout=60)
def waits(key: str) -> str:
    notes[f"{key}-{os.environ['MODAL_TASK_ID']}"] = True
    while key not in notes:
        time.sleep(0.05)
    return os.environ["MODAL_TASK_ID"]

"""What is deployed to be measured."""

from __future__ import annotations

import os
import time

import modal

app = modal.App("bench")
volume = modal.Volume.from_name("bench", create_if_missing=True, version=2)


@app.function(single_use_containers=True)
def cold() -> float:
    """When user code starts in a new container."""
    return time.time()


@app.function(single_use_containers=True, volumes={"/data": volume})
def cold_with_volume() -> float:
    """The same with a Volume mounted."""
    return time.time()


@app.function(max_containers=1)
def warm() -> float:
    """When user code starts in a container that waits for it."""
    return time.time()


@app.function(max_containers=2)
def nothing(x: int = 0) -> int:
    """A call that costs nothing itself."""
    return x


@app.function(max_containers=8)
def spread(x: int) -> int:
    """The same, in eight containers."""
    return x


@app.function(timeout=60)
def sleeper(key: str) -> None:
    """Waits to be cancelled."""
    modal.Dict.from_name("bench", create_if_missing=True)[key] = os.environ["MODAL_TASK_ID"]
    time.sleep(50)


@app.function(scaledown_window=2)
@modal.fastapi_endpoint()
def web() -> str:
    """Answers over HTTP."""
    return "hello"


fifteen = modal.App("bench-fifteen", include_source=False)
for number in range(15):
    fifteen.function(name=f"function_{number}", serialized=True)(lambda: None)

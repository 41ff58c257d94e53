"""One container at a time, and it says which deployment it comes from."""

from __future__ import annotations

import os
import time

import modal

app = modal.App("limited")


@app.function(
    secrets=[modal.Secret.from_dict({"VERSION": os.environ.get("VERSION", "")})], timeout=60, max_containers=1
)
def version(seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return os.environ["VERSION"]

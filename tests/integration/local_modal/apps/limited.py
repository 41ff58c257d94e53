"""One container at a time, and it says which deployment it comes from."""

from __future__ import annotations

import os
import time

import modal

app = modal.App("limited")


@app.function(
    secrets=[modal.Secret.from_dict({"VERSION": os.environ.get("VERSION", "")})], timeout=60, max_containers=1
)
def version(until: str = "") -> str:
    """Returns at once, or when somebody has put `until` into the Dict."""
    notes = modal.Dict.from_name("limited-notes", create_if_missing=True)
    while until and until not in notes:
        time.sleep(0.05)
    return os.environ["VERSION"]

"""Says which deployment it comes from."""

from __future__ import annotations

import os
import time

import modal

app = modal.App("versions")


@app.function(secrets=[modal.Secret.from_dict({"VERSION": os.environ.get("VERSION", "")})], timeout=60)
def version(seconds: float = 0.0) -> tuple[str, str]:
    time.sleep(seconds)
    return os.environ["VERSION"], os.environ["MODAL_TASK_ID"]

"""Takes longer to import than it may."""

from __future__ import annotations

import os
import time

import modal

app = modal.App("slow-start")

if os.environ.get("MODAL_IS_REMOTE") == "1":
    time.sleep(60)


@app.function(timeout=60, startup_timeout=1)
def late() -> None:
    pass

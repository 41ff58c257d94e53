"""Can be deployed, but not be imported in a container as long as its Secret says so."""

from __future__ import annotations

import os

import modal

app = modal.App("broken")

if os.environ.get("MODAL_IS_REMOTE") == "1" and os.environ.get("BROKEN") == "yes":
    import no_such_module  # noqa: F401


@app.function(secrets=[modal.Secret.from_dict({"BROKEN": os.environ.get("BROKEN", "yes")})])
def unreachable() -> str:
    return "reached"

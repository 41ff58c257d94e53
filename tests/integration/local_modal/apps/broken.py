"""Can be deployed, but not be imported in a container."""

from __future__ import annotations

import os

import modal

app = modal.App("broken")

if os.environ.get("MODAL_IS_REMOTE") == "1":
    import no_such_module  # noqa: F401


@app.function()
def unreachable() -> None:
    pass

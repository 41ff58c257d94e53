"""Asks for what a local server can't do."""

from __future__ import annotations

import modal

app = modal.App("unsupported")


@app.function(block_network=True)
def offline() -> None:
    pass

"""Shows the variables that its Secrets set; each call gets a container of its own."""

from __future__ import annotations

import os

import modal

app = modal.App(os.environ.get("TEST_APP_NAME", "data-secrets"))
secrets = [
    modal.Secret.from_dict({"DATA_C": "earlier loses"}),
    modal.Secret.from_name(os.environ.get("TEST_SECRET_NAME", "missing")),
    modal.Secret.from_dict({"DATA_C": "later wins"}),
]


@app.function(secrets=secrets, single_use_containers=True)
def values() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("DATA_")}

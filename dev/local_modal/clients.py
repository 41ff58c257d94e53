"""What a client needs to know of a server."""

from __future__ import annotations

SERVER_FILE = "server.json"
"""In the state directory while a server runs: the same fields as its line of JSON."""


TOKEN_ID = "ak-local"
"""The id of the server's only token."""


def client_environ(server_url: str, token: str) -> dict[str, str]:
    """Environment variables with which the `modal` package, its command line included, uses a local server
    and nothing else; `token` is the server's (`local_modal.access.read_token`).
    """
    return {
        "MODAL_SERVER_URL": server_url,
        "MODAL_TOKEN_ID": TOKEN_ID,
        "MODAL_TOKEN_SECRET": token,
        # A profile in the user's ~/.modal.toml must not interfere, nor a proxy for the internet.
        "MODAL_CONFIG_PATH": "/nonexistent",
        "MODAL_DISABLE_API_PROXY": "1",
    }

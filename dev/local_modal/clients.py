"""What a client needs to know of a server: its environment, and its control API."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from local_modal.access import read_token

SERVER_FILE = "server.json"
"""In the state directory while a server runs: the same fields as its line of JSON."""
CONTROL_SECONDS = 30.0
PROBE_SECONDS = 2.0


class ControlError(Exception):
    """The control API refused, or there is no server; the message is a sentence for the user."""


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


def running_server(state_dir: Path) -> dict[str, Any]:
    """The line of JSON of the server that runs on this state directory; answers at once.

    The SDK itself would try for a minute before it says that nobody is there.

    Raises:
        ControlError: there is none.
    """
    try:
        ready: dict[str, Any] = json.loads((state_dir / SERVER_FILE).read_text())
        os.kill(ready["pid"], 0)
        host, _, port = ready["server_url"].removeprefix("http://").partition(":")
        # The process id may belong to somebody else by now.
        with socket.create_connection((host, int(port)), timeout=PROBE_SECONDS):
            return ready
    except PermissionError:
        raise ControlError(f"The server on {state_dir} belongs to another user.") from None
    except OSError:
        raise ControlError(
            f"No server runs on {state_dir}. Start one: python -m local_modal serve --state-dir {state_dir}"
        ) from None


class Control:
    """The control API of a server: JSON in and out.

    Raises (every method):
        ControlError: it refused, or nobody answered.
    """

    def __init__(self, http_url: str, token: str) -> None:
        self._url = f"{http_url}/control"
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @classmethod
    def of(cls, state_dir: Path) -> Control:
        """That of the server on this state directory."""
        return cls(running_server(state_dir)["http_url"], read_token(state_dir))

    def get(self, path: str, timeout: float = CONTROL_SECONDS) -> Any:
        """Look at something."""
        return self._ask(path, None, timeout)

    def post(self, path: str, body: Any, timeout: float = CONTROL_SECONDS) -> Any:
        """Do something."""
        return self._ask(path, json.dumps(body).encode(), timeout)

    def _ask(self, path: str, data: bytes | None, timeout: float) -> Any:
        request = urllib.request.Request(f"{self._url}/{path}", data, self._headers)
        try:
            with contextlib.closing(self._opener.open(request, timeout=timeout)) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                raise ControlError(json.loads(text)["error"]) from None
            except (ValueError, KeyError):
                raise ControlError(f"HTTP {error.code} {text[:200]}") from None
        except (TimeoutError, urllib.error.URLError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise ControlError(f"The server doesn't answer ({reason}); it may be paused.") from None

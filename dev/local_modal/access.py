"""Who may use a server: everybody on the machine can reach its ports, so clients show its token, containers a
secret of their own, and URLs contain a key.

All of them derive from the token, which is made at the first start and kept in the state directory, readable
by its owner only.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

TOKEN_FILE = "token"


class Access:
    """The token of a state directory, made if there is none, and what derives from it."""

    def __init__(self, state_dir: Path) -> None:
        path = state_dir / TOKEN_FILE
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(f"as-{secrets.token_urlsafe(32)}")
            partial.rename(path)
        self._token = read_token(state_dir)
        self.url_key = self._derive("url")
        """The first segment of every URL that is handed out: who knows the URL may use it."""
        self._admitted: dict[str, bytes] = {}
        """The secrets of live containers: each of their requests asks, and deriving one takes longer than the
        rest of the check."""

    def is_token(self, given: str) -> bool:
        """Whether `given` is the server's token."""
        return hmac.compare_digest(given.encode(), self._token.encode())

    def admit(self, task_id: str) -> str:
        """What the container `task_id` shows together with its task id, valid from now on."""
        secret = self._derive(f"container {task_id}")
        self._admitted[task_id] = secret.encode()
        return secret

    def dismiss(self, task_id: str) -> None:
        """The container has ended: what it showed, and may have leaked, is worth nothing any more."""
        self._admitted.pop(task_id, None)

    def is_container(self, task_id: str, given: str) -> bool:
        """Whether `given` is the secret of the container `task_id`, which hasn't ended."""
        secret = self._admitted.get(task_id)
        return secret is not None and hmac.compare_digest(given.encode(), secret)

    def _derive(self, purpose: str) -> str:
        return hmac.new(self._token.encode(), purpose.encode(), hashlib.sha256).hexdigest()[:40]


def read_token(state_dir: Path) -> str:
    """The token of a server that has been started on this directory.

    Raises:
        FileNotFoundError: none has.
    """
    return (state_dir / TOKEN_FILE).read_text()

"""Which Modal do the stories run on: a local server of their own, or the one that the environment points to?

``dev/test --cloud`` says the latter, so that the same stories run on Modal itself.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from local_modal.isolation import NO_NAMESPACES
from local_modal.testing import LocalModal

CLOUD = os.environ.get("MODALFLOW_TEST_CLOUD", "") not in ("", "0")
MODES = ["cloud"] if CLOUD else ["isolated", "shared"]
"""Kinds of containers: those of Modal, or both kinds of the local server."""
PATIENCE = 5 if CLOUD else 1
"""How many times longer things may take: Modal builds an image first, and answers from far away."""


@contextmanager
def modal_server(state_dir: Path, mode: str = MODES[0]) -> Iterator[LocalModal | None]:
    """Run a local server in the ``with`` block, unless Modal is used: then yield None."""
    if CLOUD:
        yield None
        return
    environ = {} if mode == "isolated" else {NO_NAMESPACES: "1"}
    with LocalModal(state_dir=state_dir, env=environ) as server:
        yield server


def client_environ(server: LocalModal | None) -> Mapping[str, str]:
    """The environment of commands that use it."""
    return server.env if server else dict(os.environ)


def environment_name(name: str) -> str:
    """A name for an environment: in an account that others use, too, one of its own."""
    return f"{name}-{secrets.token_hex(3)}" if CLOUD else name

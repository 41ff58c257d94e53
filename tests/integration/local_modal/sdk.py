"""The SDK within the test process, connected to one server; quicker than a client process per question."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import modal
import pytest

from local_modal.testing import LocalModal


@contextmanager
def connected(server: LocalModal) -> Iterator[modal.Client]:
    """A client to be passed as `client=` to everything that is looked up."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MODAL_SERVER_URL", server.server_url)
        patched.setenv("MODAL_CONFIG_PATH", "/nonexistent")
        patched.setenv("MODAL_DISABLE_API_PROXY", "1")
        client = modal.Client.from_credentials("ak-test", server.token)
    try:
        yield client
    finally:
        client.__exit__(None, None, None)  # modal 1.5 has no close()


def unique(prefix: str) -> str:
    """A name that no other test uses."""
    return f"{prefix}-{uuid4().hex[:12]}"

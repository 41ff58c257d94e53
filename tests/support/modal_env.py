"""Uses a local Modal server from the test's own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from local_modal.clients import client_environ
from local_modal.testing import LocalModal


@contextmanager
def using(server: LocalModal) -> Iterator[None]:
    """Point the SDK of this process at ``server``.

    The SDK keeps its client for the life of the process, so this is for the session's server only.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in client_environ(server.server_url, server.token).items():
            patch.setenv(name, value)
        yield

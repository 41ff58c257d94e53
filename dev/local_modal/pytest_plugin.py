"""Fixtures for tests that need a Modal: `pytest_plugins = ["local_modal.pytest_plugin"]` in a conftest.py.

def test_my_app(local_modal):
    subprocess.run(["modal", "run", "app.py"], env=local_modal.env, check=True)
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from local_modal.testing import LocalModal


@pytest.fixture(scope="session")
def local_modal() -> Iterator[LocalModal]:
    """One server for the whole session; tests keep apart by the names of their apps and objects."""
    with LocalModal() as server:
        yield server


@pytest.fixture
def fresh_local_modal() -> Iterator[LocalModal]:
    """A server for one test, which may stop, kill and restart it."""
    with LocalModal() as server:
        yield server

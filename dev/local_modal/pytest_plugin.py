"""Fixtures for tests that need a Modal: `pytest -p local_modal.pytest_plugin`, or in the conftest.py of the
root directory `pytest_plugins = ["local_modal.pytest_plugin"]`.

    def test_my_app(local_modal):
        with local_modal.fault("lose", rpc="FunctionMap", count=1):
            subprocess.run(["modal", "run", "app.py"], env=local_modal.env, check=True)

All chance of faults derives from one seed, which pytest prints; `--local-modal-seed` repeats a run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from local_modal.testing import LocalModal

SEED = "local_modal_seed"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--local-modal-seed`."""
    parser.getgroup("local_modal").addoption(
        "--local-modal-seed",
        dest=SEED,
        type=int,
        metavar="N",
        help="seed of the faults that local Modal servers inject (default: at random, and printed)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed once, also for the workers of xdist, which inherit the options."""
    if getattr(config.option, SEED, None) is None:
        setattr(config.option, SEED, random.SystemRandom().getrandbits(32))


def pytest_report_header(config: pytest.Config) -> str:
    """What repeats this run."""
    return f"local_modal: --local-modal-seed {config.getoption(SEED)}"


@pytest.fixture(scope="session")
def local_modal(pytestconfig: pytest.Config) -> Iterator[LocalModal]:
    """One server for the whole session; tests keep apart by the names of their apps and objects."""
    with LocalModal(arguments=["--seed", str(pytestconfig.getoption(SEED))]) as server:
        yield server


@pytest.fixture
def fresh_local_modal(pytestconfig: pytest.Config) -> Iterator[LocalModal]:
    """A server for one test, which may stop, kill and restart it."""
    with LocalModal(arguments=["--seed", str(pytestconfig.getoption(SEED))]) as server:
        yield server

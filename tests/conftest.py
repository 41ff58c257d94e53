"""Fixtures of the whole suite: a real PostgreSQL server, databases in it, and the local Modal server."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
from hypothesis import HealthCheck, settings

from tools.postgres import THROW_AWAY, serve

# The same examples each time, and none is too slow for a machine that is busy; HYPOTHESIS_PROFILE=searching
# looks for new ones.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("searching", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

SHARED_ENVIRONMENT = (
    "test_container_loss",
    "test_deadline_callback",
    "test_deferred_tasks",
    "test_task_options",
    "test_ui",
)
"""Modules of the acceptance tests that share one environment, whose creation takes half a minute."""
MOST_LINES = 40
LONGEST_LINE = 240
"""What a failure shows of each captured output: Airflow writes thousands of long lines, which bury it."""
pytest_plugins = [
    "local_modal.pytest_plugin",
    "tests.support.airflow_children",
    "tests.support.scheduler_environment",
]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadfile`` a file's tests stay in one process; files that share an environment, too."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByEnvironment(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "shared environment" if Path(path).stem in SHARED_ENVIRONMENT else path

    return ByEnvironment(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what makes the random tests longer than the suite can afford."""
    group = parser.getgroup("scheduler")
    group.addoption("--due-steps", type=int, default=10, help="States that the due-check is tried on.")
    group.addoption("--due-seed", type=int, default=None, help="Another sequence of random states.")
    group.addoption("--wake-ends", type=int, default=100, help="Tasks that end at once.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep of a failed test's captured output what came last."""
    report = yield
    if report.failed:
        report.sections = [(name, _end_of(text)) for name, text in report.sections]
    return report


def _end_of(text: str) -> str:
    lines = text.splitlines()
    left_out = len(lines) - MOST_LINES
    shown = [
        line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..." for line in lines[-MOST_LINES:]
    ]
    return "\n".join([f"... {left_out} lines before", *shown] if left_out > 0 else shown)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of the session's PostgreSQL server, reachable by TCP with a password, whose user may create
    databases: a server of the session's own, unless there is one at MODALFLOW_TEST_DATABASE_URL.
    """
    if given := os.environ.get("MODALFLOW_TEST_DATABASE_URL"):
        yield given
        return
    root = Path(tempfile.mkdtemp(prefix="modalflow-postgres-"))
    try:
        with serve(root, options=THROW_AWAY) as url:
            yield url
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def fresh_database(postgres_url: str) -> Iterator[str]:
    """URL of a new, empty database that is dropped after the test."""
    with _database(postgres_url) as url:
        yield url


@pytest.fixture
def airflow_database(postgres_url: str, _airflow_template: str) -> Iterator[str]:
    """URL of a new database with the installed Airflow's schema and nothing in it."""
    with _database(postgres_url, template=_airflow_template) as url:
        yield url


@pytest.fixture(scope="session")
def _airflow_template(postgres_url: str) -> Iterator[str]:
    """Name of a migrated database: made once, because a migration takes seconds and a copy milliseconds."""
    with _database(postgres_url) as url, tempfile.TemporaryDirectory() as home:
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
            "AIRFLOW_HOME": home,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url.replace("postgresql:", "postgresql+psycopg2:", 1),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": "",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        }
        migrate = "from airflow.utils.db import upgradedb; upgradedb()"
        done = subprocess.run(
            [sys.executable, "-c", migrate],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"Airflow's migration failed:\n{done.stdout[-4000:]}"
        yield urlsplit(url).path.lstrip("/")


@contextmanager
def _database(server_url: str, template: str = "template1") -> Iterator[str]:
    """A new database, dropped afterwards; yields its URL."""
    name = f"test_{secrets.token_hex(6)}"
    with _admin(server_url) as cursor:
        cursor.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        yield urlsplit(server_url)._replace(path=f"/{name}").geturl()
    finally:
        with _admin(server_url) as cursor:
            cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextmanager
def _admin(server_url: str) -> Iterator[psycopg2.extensions.cursor]:
    connection = psycopg2.connect(server_url)
    connection.autocommit = True
    try:
        yield connection.cursor()
    finally:
        connection.close()

"""Environments with a database each; one entry process runs the scheduler and triggerer of all of them."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from airflow_provider_modal.db import ownership
from local_modal.testing import LocalModal
from tests.support.airflow_children import RECORD
from tests.support.holder_driver import HolderProcess


class Environment:
    """One environment with a database of its own."""

    def __init__(self, holder: HolderProcess, url: str, record: Path) -> None:
        self.name = f"holder-{secrets.token_hex(4)}"
        self.holder = holder
        self.url = url
        self._request = {"env": self.name, "url": url, "environ": {RECORD: str(record)}}

    def claim(self) -> None:
        """Make the database its own, as ``create`` does."""
        with self.connection() as connection:
            ownership.claim(connection, self.name)

    def ask(self, op: str, **request: Any) -> Any:
        """Ask the entry process for something; see ``holder_driver``."""
        return self.holder.ask(op=op, **self._request, **request)

    def run(self) -> Any:
        """Do a scheduler run."""
        return self.ask("run")

    def begin(self, op: str, **request: Any) -> None:
        """Ask for something without waiting for the answer; see ``HolderProcess.receive``."""
        self.holder.send(op=op, **self._request, **request)

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Execute one statement in the database and return its rows."""
        with self.connection() as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def until(self, statement: str, seconds: float = 60) -> None:
        """Wait until a query finds a row."""
        deadline = time.monotonic() + seconds
        while not self.sql(statement):
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {statement}"
            time.sleep(0.05)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Open an autocommit connection to the database."""
        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        try:
            yield connection
        finally:
            connection.close()


@pytest.fixture(scope="session")
def holder(local_modal: LocalModal) -> Iterator[HolderProcess]:
    """The entry process of the containers that schedule and run triggers."""
    root = Path(tempfile.mkdtemp(prefix="modalflow-holder-"))
    process = HolderProcess(local_modal.env, root)
    yield process
    process.close()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def environment(holder: HolderProcess, airflow_database: str, tmp_path: Path) -> Environment:
    """An environment that has a database, and no DAGs."""
    environment = Environment(holder, airflow_database, tmp_path / "record")
    environment.claim()
    return environment

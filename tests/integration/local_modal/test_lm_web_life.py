"""The URLs of web functions over deployments, restarts and the ends of apps."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import APPS, client, deploy, interrupt, modal
from tests.integration.local_modal.http_client import ask, connection, seen

pytestmark = pytest.mark.one_sdk

URL = "result = f('web', 'web').get_web_url()"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalModal]:
    with LocalModal(arguments=["--stop-grace", "1"]) as server:
        yield server


def refused(url: str) -> bool:
    """Whether nobody listens there."""
    try:
        ask(url)
    except ConnectionRefusedError:
        return True
    return False


def test_a_url_outlives_deployments_and_restarts(server: LocalModal) -> None:
    deploy(server, "web", TAG="one")
    url = client(server, URL)
    assert seen(url)["tag"] == "one"
    deploy(server, "web", TAG="two")
    assert client(server, URL) == url and seen(url)["tag"] == "two"
    server.restart()
    assert client(server, URL) == url and seen(url)["tag"] == "two"
    server.kill()
    server.start()
    assert seen(url)["tag"] == "two"
    modal(server, "app", "stop", "--yes", "web")
    wait_until(lambda: refused(url))
    deploy(server, "web", TAG="three")
    assert client(server, URL) == url and seen(url)["tag"] == "three"


def test_a_port_that_is_taken_at_a_restart_is_replaced(server: LocalModal) -> None:
    deploy(server, "web", TAG="one")
    url = client(server, URL)
    parts = urlsplit(url)
    server.stop()
    with socket.create_server((parts.hostname or "", parts.port or 0)):
        server.start()
    new = client(server, URL)
    assert new != url and seen(new)["tag"] == "one"
    assert f"The web function web has a new URL: its port {parts.port} can't be used" in server.log


def test_an_ephemeral_app_has_urls_while_it_runs(server: LocalModal) -> None:
    program = [sys.executable, "-m", "modal", "serve", str(APPS / "web.py")]
    serving = subprocess.Popen(
        program,
        env=server.env | {"TAG": "served", "TEST_APP_NAME": "web-served"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert serving.stdout is not None
        printed = ""
        while not (
            found := re.search(r"Created (?:web f|F)unction web\b[^:]*(http://127\.0\.0\.1:\d+)", printed)
        ):
            line = serving.stdout.readline()
            assert line, printed
            printed += line
        url = found.group(1)
        wait_until(lambda: not refused(url))
        assert seen(url)["tag"] == "served"
        for line in serving.stdout:
            if "Watching" in line:
                break
        interrupt(serving)
    finally:
        serving.kill()
        serving.communicate()
    wait_until(lambda: refused(url))


def test_open_connections_do_not_keep_a_server(server: LocalModal) -> None:
    """Neither an idle one nor one within a response."""
    deploy(server, "web", TAG="one")
    url = client(server, URL)
    idle, busy = connection(url), connection(url)
    idle.request("GET", "/")
    assert idle.getresponse().read()
    busy.request("GET", "/endless?key")
    assert busy.getresponse().read1() == b"x"
    server.restart()  # which fails if it takes long
    assert seen(url)["tag"] == "one"
    idle.close()
    busy.close()

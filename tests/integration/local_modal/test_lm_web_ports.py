"""User code that listens itself: web servers, and tunnels to ports of containers."""

from __future__ import annotations

import importlib.util
import random
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from local_modal import web_server
from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import client, deploy, start_client
from tests.integration.local_modal.http_client import ask
from tests.integration.local_modal.sdk import unique

HAS_CRYPTOGRAPHY = importlib.util.find_spec("cryptography") is not None
needs_cryptography = pytest.mark.skipif(not HAS_CRYPTOGRAPHY, reason="no certificates without cryptography")
NOTES = "notes = modal.Dict.from_name('ports-notes', create_if_missing=True)\n"


def free_port() -> int:
    """A free one that the kernel gives to nobody who asks for any port."""
    for port in random.sample(range(20_000, 30_000), 100):
        try:
            with socket.create_server(("0.0.0.0", port)):
                return port
        except OSError:
            continue
    raise AssertionError("no port is free")


@pytest.fixture(scope="module")
def server() -> Iterator[LocalModal]:
    with LocalModal(arguments=["--stop-grace", "1"]) as server:
        yield server


def noted(server: LocalModal, key: str) -> Any:
    return client(server, f"{NOTES}result = notes.get(key)", key=key)


def note(server: LocalModal, key: str) -> None:
    client(server, f"{NOTES}notes[key] = True; result = None", key=key)


def test_a_web_server_and_its_successor(server: LocalModal) -> None:
    if not web_server.has_interface():
        pytest.skip("no interface eth0")
    port = free_port()
    deploy(server, "ports", WEB_SERVER_PORT=str(port))
    assert f"only one at a time can listen on port {port}: max_containers is 1" in server.log
    url = client(server, "result = f('served', 'ports').get_web_url()")
    response, body = ask(url, "/some/path?x=1")
    task, path, forwarded = body.decode().split()
    assert (response.status, path, forwarded) == (200, "/some/path?x=1", "127.0.0.1")
    assert [live["task_id"] for live in server.tasks("served")] == [task]  # though min_containers is 2
    # The next deployment's container can only listen once this one has gone.
    deploy(server, "ports", WEB_SERVER_PORT=str(port), EDITION="2")
    response, body = ask(url)
    assert response.status == 200 and body.decode().split()[0] != task
    # Should the container die, there is another one.
    server.control("kill", function_name="served")
    assert ask(url)[0].status == 200


def talk(link: socket.socket) -> bytes:
    link.sendall(b"abc")
    return link.recv(100)


def trusting(server: LocalModal) -> ssl.SSLContext:
    """What a client needs to trust tunnels, as strict as Python 3.13's default."""
    context = ssl.create_default_context(cafile=server.ca_file)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def is_cut_off(link: socket.socket) -> bool:
    """Whether the connection ends, in whatever manner, before anything more comes."""
    try:
        return link.recv(100) == b""
    except (ConnectionError, ssl.SSLError):
        return True


@needs_cryptography
def test_a_tunnel_from_its_start_to_its_end(server: LocalModal) -> None:
    deploy(server, "ports")
    key = unique("tunnel")
    running = start_client(server, "f('forwarded', 'ports').remote(key); result = True", key=key)
    tunnel = wait_until(lambda: noted(server, key))
    assert "already forwarded" in tunnel["refusal"]
    host, port = tunnel["tls"]
    tls = trusting(server).wrap_socket(
        socket.create_connection((host, port), timeout=30), server_hostname=host
    )
    tcp = socket.create_connection(tuple(tunnel["tcp"]), timeout=30)
    with tls, tcp:
        assert talk(tls) == talk(tcp) == b"ABC"
        note(server, f"{key}-stop")
        wait_until(lambda: noted(server, f"{key}-stopped"))
        for address in (tunnel["tls"], tunnel["tcp"]):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(tuple(address), timeout=30)
        # What was connected stays so, until the container ends.
        assert talk(tls) == talk(tcp) == b"ABC"
        server.control("kill", task_id=tunnel["task"])
        assert is_cut_off(tls) and is_cut_off(tcp)
    note(server, f"{key}-exit")
    assert running.wait(30) == 0
    running.communicate()


@needs_cryptography
def test_a_page_at_the_url_of_a_tunnel(server: LocalModal) -> None:
    deploy(server, "ports")
    key = unique("page")
    running = start_client(server, "f('page', 'ports').remote(key); result = True", key=key)
    url = wait_until(lambda: noted(server, key))
    assert b"/here" in urllib.request.urlopen(f"{url}/here", context=trusting(server), timeout=30).read()
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(url, context=ssl.create_default_context(), timeout=30)
    # A tunnel ends with its container; the call starts again and makes another one.
    server.control("kill", function_name="page")
    again = wait_until(lambda: (found := noted(server, key)) != url and found)
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(url, context=trusting(server), timeout=30)
    assert b"/again" in urllib.request.urlopen(f"{again}/again", context=trusting(server), timeout=30).read()
    note(server, f"{key}-stop")
    assert running.wait(30) == 0
    running.communicate()


@pytest.mark.skipif(HAS_CRYPTOGRAPHY, reason="only to be seen without cryptography")
def test_a_tunnel_that_is_impossible_is_refused(server: LocalModal) -> None:
    deploy(server, "ports")
    code = """
try:
    f('page', 'ports').remote('key')
except Exception as error:
    result = str(error)
"""
    assert "pip install cryptography" in client(server, code)

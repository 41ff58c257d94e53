"""Requests to web functions, what the app sees of them and what the client gets back."""

from __future__ import annotations

import http.client
import importlib.util
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import client, deploy
from tests.integration.local_modal.http_client import ask, connection, seen
from tests.integration.local_modal.sdk import unique

needs_fastapi = pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None, reason="the interpreter of the containers has no FastAPI"
)
NOTE = "modal.Dict.from_name('web-notes')[key] = True; result = None"
NOTED = "result = modal.Dict.from_name('web-notes').get(key)"


@pytest.fixture(scope="module")
def urls(isolated_server: LocalModal) -> dict[str, str]:
    """The URLs of all functions of the app, which is deployed."""
    printed = "".join(deploy(isolated_server, app) for app in ("web", "shop", "storefront"))
    names = ["web", "private", "old", "add", "slow"]
    code = "result = {name: f(name, 'web').get_web_url() for name in names}"
    found: dict[str, str] = client(isolated_server, code, names=names)
    found["site"] = client(isolated_server, "result = f('storefront', 'storefront').get_web_url()")
    code = "result = modal.Cls.from_name('shop', 'Shop')(town='x').stock.get_web_url()"
    found["stock"] = client(isolated_server, code)
    assert all(url in printed for url in found.values())
    assert all(urlsplit(url).hostname == "127.0.0.1" for url in found.values())
    return found


@pytest.fixture
def url(urls: dict[str, str]) -> str:
    return urls["web"]


def test_the_app_sees_the_request_and_the_client_the_response(url: str) -> None:
    link = connection(url)
    link.putrequest("GET", "/a%20b/%C3%A9?x=1&y=%20", skip_accept_encoding=True)
    for name, value in (("X-CASE", "Kept"), ("Twice", "1"), ("Twice", "2"), ("X-Forwarded-For", "192.0.2.9")):
        link.putheader(name, value)
    link.endheaders()
    response = link.getresponse()
    saw = json.loads(response.read())
    assert (saw["method"], saw["path"], saw["query"]) == ("GET", "/a b/é", "x=1&y=%20")
    assert [value for name, value in saw["headers"] if name == "twice"] == ["1", "2"]
    assert ["x-case", "Kept"] in saw["headers"] and ["host", urlsplit(url).netloc] in saw["headers"]
    assert "x-forwarded-for" not in dict(saw["headers"])  # a client can claim anything
    assert saw["client"] == "127.0.0.1" and saw["state"] == {"started": "yes"}
    assert (saw["size"], saw["parts"]) == (0, 1)
    assert response.headers.get_all("set-cookie") == ["a=1", "b=2"]
    assert ("content-type", "text/plain") in response.getheaders()  # in lower case, as HTTP/2 has it
    # The connection is kept for the next request.
    link.request("OPTIONS", "*")
    assert json.loads(link.getresponse().read())["method"] == "OPTIONS"
    link.request("HEAD", "/")
    head = link.getresponse()
    assert (head.status, head.read(), head.headers["content-type"]) == (200, b"", "text/plain")
    link.close()


@pytest.mark.parametrize("size", [0, 1, 70_000, 6_000_001])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_of_all_sizes_arrive(url: str, size: int, chunked: bool) -> None:
    body = b"\x01" * size
    saw = seen(url, method="POST", body=iter([body[: size // 2], body[size // 2 :]]) if chunked else body)
    assert saw["size"] == size and saw["sum"] == (size if size < 100_000 else -1)
    _, back = ask(url, f"/large?{size}")
    assert back == b"x" * size


def test_a_compressed_body_is_left_alone(url: str) -> None:
    assert seen(url, method="POST", body=b"not gzip", headers={"Content-Encoding": "gzip"})["size"] == 8


def test_a_client_may_wait_for_the_order_to_go_on(url: str) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as link:
        link.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert link.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        link.sendall(b"abc")
        assert link.recv(15) == b"HTTP/1.1 200 OK"


def upload_head(url: str, size: int, sent: bytes) -> bytes:
    """The beginning of the answer to an upload of `size` bytes of which only `sent` is sent."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as link:
        link.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode() + sent)
        return link.recv(12)


def test_a_body_may_have_so_many_bytes(url: str) -> None:
    assert upload_head(url, 4 * 2**30 + 1, b"") == b"HTTP/1.1 413"


def test_events_arrive_as_they_are_sent(isolated_server: LocalModal, url: str) -> None:
    """The app sends the next one only when this client has got the one before."""
    key = unique("live")
    link = connection(url)
    link.request("GET", f"/live?{key}")
    response = link.getresponse()
    assert response.headers["content-type"] == "text/event-stream"
    for number in range(3):
        assert response.read1() == f"data: {number}\n\n".encode()
        client(isolated_server, NOTE, key=f"{key}-{number}")
    assert response.read() == b"end"
    link.close()


def test_an_upload_arrives_while_it_is_sent(url: str) -> None:
    link = connection(url)
    link.putrequest("POST", "/echo")
    link.putheader("Transfer-Encoding", "chunked")
    link.endheaders()
    time.sleep(1.2)  # longer than the front door waits for the first part; shorter than the SDK does
    link.send(b"5\r\nfirst\r\n")
    response = link.getresponse()
    assert response.read1() == b"first"
    link.send(b"6\r\nsecond\r\n")
    assert response.read1() == b"second"
    link.send(b"0\r\n\r\n")
    assert response.read() == b""
    link.close()


def test_the_app_hears_that_the_client_has_gone(isolated_server: LocalModal, url: str) -> None:
    key = unique("endless")
    link = connection(url)
    link.request("GET", f"/endless?{key}")
    assert link.getresponse().read1() == b"x"
    link.close()
    wait_until(lambda: client(isolated_server, NOTED, key=key) == "http.disconnect")


def test_failures_before_the_response(urls: dict[str, str]) -> None:
    response, body = ask(urls["web"], "/raise")
    assert response.status == 500
    assert body == b"modal-http: internal error: status Failure: LookupError('not in the app')\n"
    response, body = ask(urls["slow"], "/slow?30")
    assert response.status == 500 and b"status Timeout" in body


def test_a_container_that_dies_before_the_response_is_replaced(url: str) -> None:
    before = seen(url)["task"]
    saw = seen(url, f"/die-once?{unique('die')}", method="POST", body=b"again")
    assert saw["task"] != before and saw["size"] == 5


@pytest.mark.parametrize("how", ["die", "short"])
def test_a_response_that_breaks_off_does_not_look_complete(
    isolated_server: LocalModal, url: str, how: str
) -> None:
    key = unique("die")
    link = connection(url)
    link.request("GET", f"/{how}?{key}")
    response = link.getresponse()
    if how == "die":
        assert response.read1() == b"half"
        client(isolated_server, NOTE, key=key)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        response.read()
    link.close()


def test_proxy_authorization(isolated_server: LocalModal, urls: dict[str, str]) -> None:
    env = isolated_server.env
    right = {"Modal-Key": env["MODAL_TOKEN_ID"], "Modal-Secret": env["MODAL_TOKEN_SECRET"]}
    for headers in ({}, {"Modal-Key": right["Modal-Key"]}, right | {"Modal-Secret": "as-wrong"}):
        response, body = ask(urls["private"], headers=headers)
        assert response.status == 401 and b"credentials for proxy authorization" in body
    saw = seen(urls["private"], headers=right)
    # The secret is that of the whole server.
    assert right["Modal-Secret"] not in str(saw["headers"])


def test_wsgi_and_classes(isolated_server: LocalModal, urls: dict[str, str]) -> None:
    response, body = ask(urls["old"], "/path", method="PUT", body=b"abc")
    assert (response.status, response.headers["x-path"], body) == (201, "/path", b"PUT cba")
    # Parameters of classes are in the query, and make pools of their own.
    assert ask(urls["stock"], "/tea?town=Riga")[1] == b"Riga, floor 1: /tea"
    assert ask(urls["stock"], "/tea?town=Riga&floor=3")[1] == b"Riga, floor 3: /tea"
    for query, sentence in (("", b"town is missing"), ("town=Riga&floor=x", b"floor must be a whole number")):
        response, body = ask(urls["stock"], f"/?{query}")
        assert response.status == 400 and sentence in body
    # The class can be called, too, but a web function can't.
    code = "result = modal.Cls.from_name('shop', 'Shop')(town='Riga').count.remote()"
    assert client(isolated_server, code) == len("Riga, floor 1")
    code = """
try:
    f('web', 'web').remote()
except modal.exception.InvalidError as error:
    result = str(error)
"""
    assert urls["web"] in client(isolated_server, code)


@needs_fastapi
def test_a_fastapi_endpoint(urls: dict[str, str]) -> None:
    response, body = ask(urls["add"], "/?first=1&second=2", method="POST")
    assert response.status == 200 and json.loads(body) == {"sum": 3}
    assert ask(urls["add"], "/?first=1&second=two", method="POST")[0].status == 422
    assert ask(urls["add"], "/docs")[0].status == 200


@needs_fastapi
def test_an_application_as_people_write_them(isolated_server: LocalModal, urls: dict[str, str]) -> None:
    key = unique("rows")
    link = connection(urls["site"])
    link.request("GET", f"/rows?key={key}")
    response = link.getresponse()
    assert response.read1() == b"opened\n" and response.headers["x-marked"] == "yes"
    client(isolated_server, NOTE, key=key)
    assert response.read() == b"end\n"
    link.close()
    # Work goes on after the response.
    key = unique("upload")
    _, body = ask(urls["site"], f"/upload?key={key}", method="POST", body=b"x" * 3_000_000)
    assert json.loads(body) == {"size": 3_000_000}
    wait_until(lambda: client(isolated_server, NOTED, key=key) == 3_000_000)


def test_preemption(isolated_server: LocalModal, url: str) -> None:
    """A request whose response hasn't begun starts again elsewhere; one that has begun ends where it is."""
    key = unique("preempted")
    seen(url)
    begun = connection(url)
    begun.request("GET", f"/live?{key}")
    response = begun.getresponse()
    assert response.read1() == b"data: 0\n\n"

    def running(among: set[str]) -> int:
        live = [task for task in isolated_server.tasks("web") if task["task_id"] in among]
        return sum(len(task["running_inputs"]) for task in live)

    def containers() -> set[str]:
        return {task["task_id"] for task in isolated_server.tasks("web")}

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(seen, url, f"/gate?{key}", method="POST", body=b"abc")
        wait_until(lambda: running(containers()) == 2)
        before = containers()
        isolated_server.control("preempt", function_name="web")
        wait_until(lambda: running(containers() - before) == 1)
        client(isolated_server, NOTE, key=key)
        saw = waiting.result()
    assert saw["task"] not in before and saw["size"] == 3
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        response.read()
    begun.close()


def test_many_requests_at_once(isolated_server: LocalModal, url: str) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: seen(url, f"/{number}"), range(200)))
    assert sorted(int(answer["path"][1:]) for answer in answers) == list(range(200))
    assert len({answer["task"] for answer in answers}) <= 2  # max_containers


@pytest.fixture
def impatient() -> Iterator[LocalModal]:
    with LocalModal(arguments=["--web-timeout", "0.5", "--stop-grace", "1"]) as server:
        deploy(server, "web")
        yield server


def test_a_long_request_is_redirected_to_its_result(impatient: LocalModal) -> None:
    url = client(impatient, "result = f('web', 'web').get_web_url()")
    wait_until(lambda: ask(url)[0].status == 200)
    response, _ = ask(url, "/slow?1.3", method="POST", body=b"abc")
    result = response.headers["location"]
    assert response.status == 303 and result.startswith(f"{url}/slow?1.3")
    path = result.removeprefix(url)

    def fetch(number: int) -> tuple[int, bytes]:
        """Waits for the same call, and may have to do so several times."""
        response, body = ask(url, path)
        while response.status == 303:
            assert response.headers["location"] == result
            response, body = ask(url, path)
        return response.status, body

    # A response is a stream: it can be fetched once.
    with ThreadPoolExecutor(3) as pool:
        answers = sorted(pool.map(fetch, range(3)))
    assert [status for status, _ in answers] == [200, 408, 408]
    assert json.loads(answers[0][1])["size"] == 3
    response, body = ask(url, path, method="POST")
    assert (response.status, body) == (400, b"modal-http: bad redirect method\n")
    response, _ = ask(url, "/die-once?" + unique("die"))
    assert response.status == 303  # a container is started again meanwhile
    assert upload_head(url, 10, b"half") == b"HTTP/1.1 408"  # there is no sending on what hasn't come
    response, body = ask(url, "/live?x&__modal_function_call_id=fc-unknown")
    assert response.status == 408

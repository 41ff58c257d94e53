"""What requests and responses of web functions look like inside, and how much of them is held."""

from __future__ import annotations

import asyncio
import pickle

import pytest
from modal_proto import api_pb2 as api

from local_modal import asgi, web_server
from local_modal.calls import Stream
from local_modal.rpc import RpcError
from local_modal.scheduler import PoolKey, PoolSettings, Scheduler
from local_modal.variants import pool_settings


def scope_of(target: str, kind: str = "http", **changes: object) -> dict[str, object]:
    given = {
        "scheme": "http",
        "method": "GET",
        "headers": [(b"Host", b"x"), (b"Sec-WebSocket-Key", b"k"), (b"Connection", b"close")],
        "client": ("127.0.0.1", 5),
        "http_version": "1.1",
    }
    return asgi.scope(kind, target=target, **(given | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a%2Fb%20c?d=%20&e", "/a/b c", b"d=%20&e"),
        ("/", "/", b""),
        ("/?", "/", b""),
        ("//double", "//double", b""),
        ("http://host/path?x", "/path", b"x"),
        ("http://host", "/", b""),
        ("*", "*", b""),
    ],
)
def test_targets_of_requests(target: str, path: str, query: bytes) -> None:
    scope = scope_of(target)
    assert (scope["path"], scope["query_string"]) == (path, query)


def test_scopes_hold_what_the_specification_asks() -> None:
    http = scope_of("/")
    assert http["headers"] == [(b"host", b"x"), (b"sec-websocket-key", b"k")] and http["method"] == "GET"
    # The SDK's wrapper fails on a "state", and takes the lifespan's.
    assert not {"state", "subprotocols"} & set(http)
    websocket = scope_of("/", "websocket", subprotocols=["one"])
    assert websocket["headers"] == [(b"host", b"x")] and websocket["subprotocols"] == ["one"]
    given = asgi.call_input(http, "method")
    assert pickle.loads(given.args) == ((http,), {}) and given.method_name == "method"


def test_headers_of_responses() -> None:
    flat = [b"Set-Cookie", b"a", b"Transfer-Encoding", b"chunked", b"set-cookie", b"b", b"X", b"\xe9"]
    assert asgi.response_headers(flat) == [("set-cookie", "a"), ("set-cookie", "b"), ("x", "é")]


def chunk(index: int, size: int) -> api.DataChunk:
    return api.DataChunk(index=index, data=b"x" * size)


def test_a_writer_waits_for_its_reader() -> None:
    async def story() -> None:
        stream = Stream()
        stream.append([chunk(1, 60), chunk(2, 60)])
        stream.append([chunk(2, 60)])  # repeated
        assert stream.held_bytes == 120
        writer = asyncio.ensure_future(stream.room(100))
        await asyncio.sleep(0)
        assert not writer.done()
        stream.release(1)
        await asyncio.wait_for(writer, 30)
        stream.append([chunk(1, 60)])  # repeated after it was read
        assert list(stream.chunks) == [2]
        stream.append([chunk(3, 60)])
        writer = asyncio.ensure_future(stream.room(100))
        stream.close()
        await asyncio.wait_for(writer, 30)
        stream.append([chunk(4, 60)])
        assert not stream.chunks and stream.held_bytes == 0

    asyncio.run(story())


def test_what_has_been_taken_is_dropped_beyond_a_limit() -> None:
    async def story() -> None:
        stream = Stream()
        stream.append([chunk(number, 10) for number in range(1, 6)])
        stream.trim(2, 0)  # no further than what has been taken
        assert (stream.released, list(stream.chunks)) == (2, [3, 4, 5])
        stream.trim(5, 20)
        assert (stream.released, stream.held_bytes) == (3, 20)
        stream.close()
        stream.trim(5, 0)

    asyncio.run(story())


def web_server_function(**fields: object) -> api.Function:
    config = api.WebhookConfig(type=api.WEBHOOK_TYPE_WEB_SERVER, web_server_port=8000)
    return api.Function(function_name="served", webhook_config=config, **fields)  # type: ignore[arg-type]


def test_a_web_server_has_one_container() -> None:
    settings = pool_settings(web_server_function(concurrency_limit=5), None)
    assert settings.max_containers == 1 and settings.exclusive
    scheduler = Scheduler(10)
    old, new = PoolKey("fu-1", 1), PoolKey("fu-1", 2)
    scheduler.ensure_pool(old, settings)
    scheduler.submit(old, "in-1", 0.0)
    assert scheduler.plan(0.0).starts == [old]
    scheduler.started("ta-1", old, 0.0)
    scheduler.retire_pool(old)
    scheduler.ensure_pool(new, settings)
    scheduler.submit(new, "in-2", 1.0)
    assert scheduler.plan(1.0).starts == []  # the port is taken
    scheduler.gone("ta-1", 2.0)
    assert scheduler.plan(2.0).starts == [new]
    # Other functions don't wait for each other.
    assert not pool_settings(api.Function(), None).exclusive and not PoolSettings().exclusive


def test_a_web_server_is_refused_where_it_could_only_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    assert web_server.has_interface("lo") and not web_server.has_interface("none0")
    monkeypatch.setattr(web_server, "has_interface", lambda: False)  # this machine may have the real one
    web_server.check(api.Function())
    method = api.MethodDefinition(webhook_config=web_server_function().webhook_config)
    for definition in (web_server_function(), api.Function(method_definitions={"method": method})):
        with pytest.raises(RpcError, match="needs a network interface eth0"):
            web_server.check(definition)

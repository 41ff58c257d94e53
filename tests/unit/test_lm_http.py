"""The HTTP side alone, with sockets but without a server around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from local_modal import fault_http
from local_modal import web as http
from local_modal.access import Access
from local_modal.faults import Faults, FaultSpec


def serve(tmp_path: Path, faults: Faults, scenario: Callable[[str, int], Awaitable[None]]) -> None:
    """Run `scenario` with the path and the port of a route that answers with the length of the body."""

    async def length(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    async def run() -> None:
        side = http.HttpSide("127.0.0.1", Access(tmp_path), [fault_http.middleware(faults)])
        side.add_route("PUT", "/blob/{name}", length)
        await side.start()
        try:
            path = f"/{side.url.rpartition('/')[2]}/blob/one"
            await scenario(path, int(side.address.rpartition(":")[2]))
        finally:
            await side.stop()

    asyncio.run(asyncio.wait_for(run(), 30))


async def put(path: str, port: int, body: bytes, length: int) -> bytes:
    """What the server answers until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    writer.write(head.encode() + body)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def no_faults() -> Faults:
    return Faults(1, lambda: 0.0)


def test_a_body_that_does_not_go_on_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_IDLE_SECONDS", 0.5)

    async def scenario(path: str, port: int) -> None:
        assert (await put(path, port, b"abc", 3)).endswith(b"3")
        assert await put(path, port, b"abc", 4) == b""

    serve(tmp_path, no_faults(), scenario)


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"fault": "fail", "rpc": "HTTP PUT /blob/one"}, b"503"),
        ({"fault": "http-cut"}, b""),
        ({"fault": "lose", "rpc": "HTTP PUT *"}, b""),
        ({"fault": "late", "rpc": "HTTP *", "delay": 0.01}, b"200"),
        ({"fault": "latency", "delay": 0.01}, b"200"),
        ({"fault": "fail", "rpc": "HTTP GET *"}, b"200"),
        ({"fault": "fail", "rpc": "*"}, b"200"),
    ],
)
def test_faults_strike_the_way_to_the_blobs(tmp_path: Path, settings: dict[str, str], answer: bytes) -> None:
    faults = no_faults()
    faults.add(FaultSpec.of(settings))

    async def scenario(path: str, port: int) -> None:
        first_line = (await put(path, port, b"abc", 3)).partition(b"\r\n")[0]
        assert first_line.split(b" ")[1:2] == [answer] if answer else first_line == b""

    serve(tmp_path, faults, scenario)


def test_a_stalled_request_is_let_go_when_the_fault_ends(tmp_path: Path) -> None:
    faults = no_faults()
    fault = faults.add(FaultSpec.of({"fault": "stall", "rpc": "HTTP *"}))

    async def scenario(path: str, port: int) -> None:
        waiting = asyncio.ensure_future(put(path, port, b"abc", 3))
        while not fault.struck:
            await asyncio.sleep(0.01)
        assert not waiting.done()
        faults.clear_all()
        assert b"503" in await waiting

    serve(tmp_path, faults, scenario)

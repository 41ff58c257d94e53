"""Websockets of web functions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import client, deploy
from tests.integration.local_modal.http_client import ask
from tests.integration.local_modal.sdk import unique

NOTED = "result = modal.Dict.from_name('web-notes').get(key)"


@pytest.fixture(scope="module")
def url(isolated_server: LocalModal) -> str:
    deploy(isolated_server, "web")
    found: str = client(isolated_server, "result = f('web', 'web').get_web_url()")
    return found


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, protocols=["one", "two"], timeout=aiohttp.ClientWSTimeout(ws_close=60)) as ws,
    ):
        yield ws


def test_a_conversation(isolated_server: LocalModal, url: str) -> None:
    key = unique("ws")

    async def converse() -> None:
        async with connected(f"{url}/?{key}") as ws:
            assert ws.protocol == "two"
            assert ws._response.headers["x-served"] == "yes"
            await ws.send_str("text")
            assert await ws.receive_str(timeout=60) == "TEXT"
            await ws.send_bytes(b"bytes")
            assert await ws.receive_bytes(timeout=60) == b"setyb"
            for _ in range(20):  # more than is kept
                await ws.send_str("x" * 1_000_000)
                assert len(await ws.receive_str(timeout=60)) == 1_000_000
            await ws.close(code=4444)

    asyncio.run(converse())
    # The app hears how the client left.
    wait_until(lambda: client(isolated_server, NOTED, key=key) == 4444)


def test_how_a_conversation_ends(url: str) -> None:
    async def ends(order: str) -> tuple[int | None, str | None]:
        async with connected(url) as ws:
            await ws.send_str(order)
            end = await ws.receive(timeout=60)
            assert end.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING)
            return ws.close_code, end.extra

    assert asyncio.run(ends("close")) == (4001, "as asked")
    # No closing handshake: the client takes it for a lost connection.
    assert asyncio.run(ends("die"))[0] == aiohttp.WSCloseCode.ABNORMAL_CLOSURE
    # More than Modal lets through.
    assert asyncio.run(ends("x" * (2 * 2**20 + 1)))[0] == aiohttp.WSCloseCode.MESSAGE_TOO_BIG


def test_the_app_may_refuse(url: str) -> None:
    async def refused() -> int:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with connected(f"{url}/refuse"):
                pass
        return caught.value.status

    assert asyncio.run(refused()) == 403


def test_what_is_no_handshake_reaches_no_app(url: str) -> None:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "12"}
    assert ask(url, "/", headers=headers)[0].status == 400

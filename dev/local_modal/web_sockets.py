"""Websockets of web functions: one function call per connection, for as long as that lasts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import WSCloseCode, WSMsgType, web
from modal_proto import api_pb2 as api

from local_modal import asgi
from local_modal.web_calls import WebCall, WebCallFailed

if TYPE_CHECKING:
    from local_modal.server import Server

MAX_MESSAGE_BYTES = 2 * 2**20
"""Modal's limit for a message (its guide to web functions)."""
ABNORMAL = 1006
"""The close code of a connection that was lost (RFC 6455, section 7.4.1)."""


def is_handshake(request: web.BaseRequest) -> bool:
    """Whether the client asks for a websocket."""
    headers = request.headers
    return (
        request.method == "GET"
        and headers.get("Upgrade", "").lower() == "websocket"
        and "upgrade" in headers.get("Connection", "").lower()
    )


async def serve_websocket(
    server: Server, function_id: str, method_name: str, request: web.BaseRequest, deadline: float
) -> web.StreamResponse:
    """Serve a handshake and the connection that follows, if the app accepts it until `deadline`.

    Raises:
        RpcError: the function is gone.
    """
    if not web.WebSocketResponse().can_prepare(request).ok:
        return web.Response(status=400, text="modal-http: not a websocket handshake of version 13\n")
    offered = request.headers.get("Sec-WebSocket-Protocol", "")
    peer = request.transport.get_extra_info("peername") if request.transport else None
    scope = asgi.scope(
        "websocket",
        scheme="ws",
        method=request.method,
        target=request.raw_path,
        headers=request.raw_headers,
        client=(peer[0], peer[1]) if peer else ("127.0.0.1", 0),
        http_version="1.1",
        subprotocols=[name.strip() for name in offered.split(",") if name.strip()],
    )
    call = WebCall(server, function_id, method_name, scope)
    code = ABNORMAL
    try:
        call.tell(asgi.websocket_connect())
        if not await call.ready(deadline):
            return web.Response(status=504, text="modal-http: the websocket was not accepted in time\n")
        try:
            answer = await call.receive()
        except WebCallFailed as error:
            return web.Response(status=500, text=f"{error}\n")
        if answer is None or answer.WhichOneof("type") != "websocket_accept":
            # The ASGI specification: a close before the accept refuses the handshake.
            return web.Response(status=403)
        accept = answer.websocket_accept
        socket = web.WebSocketResponse(
            protocols=[accept.subprotocol] if accept.subprotocol else [],
            max_msg_size=MAX_MESSAGE_BYTES,
            compress=False,  # Modal's guide: no permessage-deflate
        )
        socket.headers.extend(asgi.response_headers(accept.headers))
        await socket.prepare(request)
        try:
            await _converse(socket, call, request)
        finally:  # cancelled when the connection ends, be it after an orderly close
            code = socket.close_code or ABNORMAL
        return socket
    finally:
        call.leave(asgi.websocket_disconnect(code))


async def _converse(socket: web.WebSocketResponse, call: WebCall, request: web.BaseRequest) -> None:
    """Pass messages on in both directions until one side closes."""
    up = asyncio.ensure_future(_from_client(socket, call))
    down = asyncio.ensure_future(_to_client(socket, call, request))
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        for side in (up, down):
            if side.done():
                side.result()
    finally:
        up.cancel()
        down.cancel()


async def _from_client(socket: web.WebSocketResponse, call: WebCall) -> None:
    async for message in socket:
        if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            await call.tell_in_turn(asgi.websocket_receive(message.data))


async def _to_client(socket: web.WebSocketResponse, call: WebCall, request: web.BaseRequest) -> None:
    try:
        while (message := await call.receive()) is not None:
            kind = message.WhichOneof("type")
            if kind == "websocket_send":
                await _send(socket, message.websocket_send)
            elif kind == "websocket_close":
                close = message.websocket_close
                await socket.close(
                    code=close.code if close.HasField("code") else WSCloseCode.OK,
                    message=close.reason.encode(),
                )
                return
        await socket.close()
    except (WebCallFailed, ConnectionError):
        # The container died, or the client has gone: no closing handshake.
        if request.transport is not None:
            request.transport.abort()


async def _send(socket: web.WebSocketResponse, message: api.Asgi.WebsocketSend) -> None:
    if message.WhichOneof("content") == "text":
        await socket.send_str(message.text)
    else:
        await socket.send_bytes(message.bytes)

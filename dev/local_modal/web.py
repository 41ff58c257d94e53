"""The HTTP side: one loopback listener for blobs, volume blocks and the control API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from local_modal.access import Access

MAX_BODY_BYTES = 4 * 2**30

BODY_IDLE_SECONDS = 20.0
"""A request whose body doesn't go on for so long is broken off, about as S3 does (its RequestTimeout).

Without it a client can hang for ever: when a connection breaks during a PUT, aiohttp repeats the request by
itself, with a body that has been read already.
"""

HttpHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpSide:
    """Routes that services add before the start, served on one port."""

    def __init__(self, host: str, access: Access, middlewares: Iterable[Middleware] = ()) -> None:
        self._host = host
        self._access = access
        self._app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_no_idle_body, *middlewares])
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def address(self) -> str:
        """`http://host:port`, valid once the server has started."""
        if not self._port:
            raise RuntimeError("the HTTP side has no address before the server has started")
        return f"http://{self._host}:{self._port}"

    @property
    def url(self) -> str:
        """Below it are the routes of `add_route`; not to be guessed, so only for those who may use them."""
        return f"{self.address}/{self._access.url_key}"

    def add_route(self, method: str, path: str, handler: HttpHandler) -> None:
        """Serve `path` (aiohttp's pattern syntax, such as `/blob/{blob_id}`) below `url`; only before the
        start.
        """
        self._app.router.add_route(method, f"/{self._access.url_key}{path}", handler)

    def add_guarded_route(self, method: str, path: str, handler: HttpHandler) -> None:
        """Serve `path` below `address` for those who show the token: `Authorization: Bearer <token>`."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            kind, _, given = request.headers.get("Authorization", "").partition(" ")
            if kind != "Bearer" or not self._access.is_token(given):
                return web.json_response(
                    {"error": "the header 'Authorization: Bearer <MODAL_TOKEN_SECRET>' is missing or wrong"},
                    status=401,
                )
            return await handler(request)

        self._app.router.add_route(method, path, guarded)

    async def start(self, port: int = 0) -> None:
        """Listen on `port`, 0 = a free one."""
        self._runner = web.AppRunner(self._app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the listener and its connections."""
        if self._runner is not None:
            await self._runner.cleanup()


@web.middleware
async def _no_idle_body(request: web.Request, handler: Handler) -> web.StreamResponse:
    if not request.can_read_body:
        return await handler(request)
    watching = asyncio.ensure_future(break_off_if_idle(request, BODY_IDLE_SECONDS))
    try:
        return await handler(request)
    finally:
        watching.cancel()


async def break_off_if_idle(request: web.Request, seconds: float) -> None:
    """Close the connection if no byte of the body arrives for `seconds`; return when it is complete."""
    arrived = -1
    while not request.content.is_eof():
        if request.content.total_bytes == arrived:
            if request.transport is not None:
                request.transport.abort()
            return
        arrived = request.content.total_bytes
        await asyncio.sleep(seconds)

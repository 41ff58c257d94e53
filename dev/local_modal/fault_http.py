"""Faults on the HTTP side: blobs, volume blocks and files. The control API is never struck."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from local_modal.faults import FAIL, HTTP_PREFIX, LATE, LATENCY, LOSE, STALL, Faults, Visit

CONTROL = "/control/"


def middleware(faults: Faults) -> Middleware:
    """Strikes requests under the name `HTTP METHOD /path`, without the secret first segment of their URL."""

    @web.middleware
    async def struck(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not faults.armed or request.path.startswith(CONTROL):
            return await handler(request)
        path = request.path[request.path.find("/", 1) :]
        strikes = faults.strikes(Visit(f"{HTTP_PREFIX}{request.method} {path}", repeatable=False))
        effects = {strike.effect: strike for strike in strikes}
        way = sum(strike.delay for strike in strikes if strike.effect == LATENCY) / 2
        await asyncio.sleep(way)
        if FAIL in effects:
            raise web.HTTPServiceUnavailable(text=effects[FAIL].message)
        if STALL in effects:
            await effects[STALL].fault.ended.wait()
            raise web.HTTPServiceUnavailable(text="the connection was lost")
        if LOSE in effects:
            if not effects[LOSE].fault.spec.connection:
                await handler(request)
            if request.transport is not None:
                request.transport.abort()
            raise web.HTTPServiceUnavailable(text="nobody will read this")
        response = await handler(request)
        await asyncio.sleep(way + (effects[LATE].delay if LATE in effects else 0.0))
        return response

    return struck

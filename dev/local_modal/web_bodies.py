"""The body of a request on its way into its call, part by part as it arrives."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import StreamReader, web

from local_modal import asgi

if TYPE_CHECKING:
    from local_modal.web_calls import WebCall

FIRST_PART_SECONDS = 1.0
"""The SDK gives up on a request (408) whose first message isn't there within 5 s."""
BLOB_BYTES = 4 * 2**20
"""Parts that don't stay in memory are gathered up to this size ..."""
GATHER_SECONDS = 0.02
"""... or until nothing more has come for so long."""


class ClientGone(Exception):
    """The connection was lost."""


class BodyTooLarge(Exception):
    """More came than the limit allows."""


async def pump_body(request: web.BaseRequest, call: WebCall, limit: int) -> None:
    """Pass the whole body on.

    Raises:
        BodyTooLarge: it is larger than `limit` bytes.
        ClientGone: the client left within its body.
    """
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    content = request.content
    total, first = 0, True
    while True:
        # Not iter_chunks(): it never ends for an empty body.
        try:
            data = await _part(content, first, call.keeps_in_memory)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # aiohttp has several for a connection that is lost within a body
            raise ClientGone from error
        first = False
        total += len(data)
        if total > limit:
            call.tell(asgi.http_disconnect())
            raise BodyTooLarge
        at_end = content.at_eof()
        await call.send(asgi.body(data, more_body=not at_end))
        if at_end:
            return


async def _part(content: StreamReader, first: bool, at_once: bool) -> bytes:
    """What has arrived; may be empty for the first part, which must not be late, and for the last."""
    if first:
        try:
            return await asyncio.wait_for(content.readany(), FIRST_PART_SECONDS)
        except asyncio.TimeoutError:
            return b""
    data = await content.readany()
    if at_once:
        return data
    gathered = bytearray(data)
    while len(gathered) < BLOB_BYTES and not content.at_eof():
        try:
            gathered += await asyncio.wait_for(content.readany(), GATHER_SECONDS)
        except asyncio.TimeoutError:
            break
    return bytes(gathered)

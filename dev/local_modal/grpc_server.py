"""grpclib's server with one write per turn of the event loop, and with connections that stay small.

grpclib writes the headers, the message and the trailers of an answer one by one. Each write is a system call
here and a wake-up of the client there: together they take longer than serving the call.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import grpclib.server
from grpclib.protocol import H2Protocol
from h2.connection import H2Connection

PENDING_MAX = 64 * 1024
"""More bytes than this are written at once, so that flow control sees large answers as they grow."""
CLOSED_STREAMS_KEPT = 1_000
"""Streams of a connection of which is known how they were closed, for frames that were on their way then.
h2's own limit of 65,536 takes 7 MB for each connection, and a container has its own for as long as it lives.
"""


class GrpcServer(grpclib.server.Server):
    """Serves as grpclib's own does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of the class, as grpclib makes the connections and nothing leads to its choice.
        H2Connection.MAX_CLOSED_STREAMS = CLOSED_STREAMS_KEPT

    def _protocol_factory(self) -> H2Protocol:
        return _joining(super()._protocol_factory())


def _joining(protocol: H2Protocol) -> H2Protocol:
    connection_made = protocol.connection_made

    def with_joined_writes(transport: asyncio.BaseTransport) -> None:
        connection_made(cast(asyncio.BaseTransport, _JoinedWrites(cast(asyncio.Transport, transport))))

    protocol.connection_made = with_joined_writes  # type: ignore[method-assign]
    return protocol


class _JoinedWrites:
    """A transport that keeps what is written until the running turn of the loop ends."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._pending = bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write soon, after what was written before."""
        if data and not self._pending:
            self._loop.call_soon(self._flush)
        self._pending += data
        if len(self._pending) > PENDING_MAX:
            self._flush()

    def close(self) -> None:
        """Write the rest and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._pending and not self._transport.is_closing():
            self._transport.write(bytes(self._pending))
        self._pending.clear()

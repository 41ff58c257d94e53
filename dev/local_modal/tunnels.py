"""A forwarded port: a listener on this machine whose connections, with or without TLS, lead to a port where
user code in a container listens.
"""

from __future__ import annotations

import asyncio
import ssl

HOST = "127.0.0.1"
"""Never another address: everybody who reaches a tunnel reaches the container's port."""
READ_BYTES = 64 * 1024


class Forwarder:
    """Forwards to `port`; with `context` it speaks TLS to its clients and plain TCP to the port."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self._target = port
        self._context = context
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port, then known as `port`."""
        self._server = await asyncio.start_server(self._accept, HOST, 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Stop listening; connections go on until one of their ends closes them."""
        if self._server is not None:
            self._server.close()

    def abort(self) -> None:
        """Stop listening and cut the connections off."""
        self.close()
        for connection in list(self._connections):
            connection.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.ensure_future(self._forward(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection(HOST, self._target)
        except OSError:
            writer.transport.abort()  # nobody listens there (any more)
            return
        try:
            await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))
        except ConnectionError:
            pass  # one side broke off, and so does the other
        finally:
            for end in (writer, inner_writer):
                end.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass everything on, then the end."""
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
    else:  # TLS knows no half-closed connections
        writer.close()
        await writer.wait_closed()

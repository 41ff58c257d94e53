"""A web request as a function call: it waits in the function's pool like any other input, and the messages of
its connection travel on the call's two data streams.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from modal_proto import api_pb2 as api

from local_modal import asgi

if TYPE_CHECKING:
    from local_modal.server import Server

INLINE_BYTES = 2 * 2**20
"""The size of a message, and of all that a request keeps in memory, above which data goes into blobs: Modal's
limit for inputs (`MAX_OBJECT_SIZE_BYTES` in the SDK's `_utils/blob_utils.py`).
"""
AHEAD_BYTES = 16 * 2**20
"""How far one side of a websocket may be ahead of the other."""


class WebCallFailed(Exception):
    """The call ended without completing its response; the message is what Modal's proxy would say."""

    def __init__(self, result: api.GenericResult) -> None:
        # The wording of Modal's proxy, as it is quoted in public: "modal-http: internal error: status
        # InternalFailure: Server has lost track of input".
        name = api.GenericResult.GenericStatus.Name(result.status).removeprefix("GENERIC_STATUS_")
        status = "".join(part.capitalize() for part in name.split("_"))
        super().__init__(f"modal-http: internal error: status {status}: {result.exception}")


class WebCall:
    """One request on its way through a pool.

    Args:
        server: whose engine runs it.
        function_id: the web function, or the class whose method it is.
        method_name: "" for functions.
        scope: `asgi.scope`.

    Raises:
        RpcError: the function is gone.
    """

    def __init__(self, server: Server, function_id: str, method_name: str, scope: dict[str, Any]) -> None:
        self._server = server
        self._call = server.engine.ledger.open(
            function_id,
            api.FUNCTION_CALL_TYPE_UNARY,
            api.FUNCTION_CALL_INVOCATION_TYPE_SYNC,
            # Whoever waits for it is connected to this server process.
            durable=False,
        )
        self._call.web = True
        [self._input] = server.engine.submit(self._call, [(0, asgi.call_input(scope, method_name))])
        self._sent = self._read = self._inline = 0
        self._blobs: list[str] = []

    @property
    def call_id(self) -> str:
        """What the result URL of a long request contains."""
        return self._call.call_id

    @property
    def function_id(self) -> str:
        """The function that was called."""
        return self._call.function_id

    @property
    def done(self) -> bool:
        """Whether the function call has ended."""
        return self._input.done

    # -- to the container

    def tell(self, message: api.Asgi) -> None:
        """Pass a small message on."""
        self._append(api.DataChunk(data=message.SerializeToString()))

    async def tell_in_turn(self, message: api.Asgi) -> None:
        """Pass a message of up to `INLINE_BYTES` on once most of those before it have been taken."""
        await self._call.data_in.room(AHEAD_BYTES)
        self.tell(message)

    @property
    def keeps_in_memory(self) -> bool:
        """Whether what `send` passes on stays in memory: a container that dies makes another one read it
        again from the start.
        """
        return self._inline < INLINE_BYTES

    async def send(self, message: api.Asgi) -> None:
        """Pass a message of any size on."""
        data = message.SerializeToString()
        if self._inline + len(data) <= INLINE_BYTES:
            self._inline += len(data)
            self._append(api.DataChunk(data=data))
            return
        self._inline = INLINE_BYTES
        blob_id = await self._server.blobs.add(data)
        if not self._blobs:
            self._server.engine.spawn_background(self._remove_blobs())
        self._blobs.append(blob_id)
        self._append(api.DataChunk(data_blob_id=blob_id))

    def _append(self, chunk: api.DataChunk) -> None:
        self._sent += 1
        chunk.index, chunk.data_format = self._sent, api.DATA_FORMAT_ASGI
        self._call.data_in.append([chunk])

    async def _remove_blobs(self) -> None:
        while not self._input.done:
            changed = self._call.changed
            await changed.wait()
        for blob_id in self._blobs:
            await self._server.blobs.remove(blob_id)

    # -- from the container

    async def ready(self, until: float) -> bool:
        """Whether `receive` would answer at once; waits for that until that time of the server's clock."""
        stream = self._call.data_out
        while self._read + 1 not in stream.chunks and not self._input.done:
            remaining = until - self._server.clock.time()
            if not await self._server.engine.wait(stream.changed, remaining):
                return False
        return True

    async def receive(self) -> api.Asgi | None:
        """The next message, or None after the last one. May be cancelled without losing a message.

        Raises:
            WebCallFailed: the call failed, and every message before that has been received.
        """
        stream = self._call.data_out
        while (chunk := stream.chunks.get(self._read + 1)) is None:
            if self._input.output is not None:
                result = self._input.output.result
                if result.status != api.GenericResult.GENERIC_STATUS_SUCCESS:
                    raise WebCallFailed(result)
                return None
            await stream.changed.wait()
        message = await self._message(chunk)
        self._read += 1
        stream.release(self._read)
        return message

    async def _message(self, chunk: api.DataChunk) -> api.Asgi:
        if chunk.WhichOneof("data_oneof") == "data_blob_id":
            path = self._server.blobs.path(chunk.data_blob_id)
            data = await asyncio.to_thread(path.read_bytes)
            await self._server.blobs.remove(chunk.data_blob_id)
        else:
            data = chunk.data
        return api.Asgi.FromString(data)

    def leave(self, farewell: api.Asgi) -> None:
        """Nobody waits for this call any more. A container that has it is told so with `farewell` and may go
        on; that one still in the queue is dropped is an assumption.
        """
        self._call.data_out.close()
        if self._input.done:
            return
        if self._input.running_on:
            self._input.cancel_requested = True  # should its container die, it doesn't start again
            self.tell(farewell)
        else:
            self._server.engine.cancel(self._call, False, "The client of the request has gone")

"""What the server remembers of each request is bounded, and of a request that is over it is little."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Cardinality, Handler
from grpclib.protocol import H2Protocol
from h2.connection import H2Connection
from modal_proto import api_pb2 as api

from local_modal import grpc_server
from local_modal.grpc_server import GrpcServer
from local_modal.rpc import _AnswerCache

PATH = "/modal.client.ModalClient/ContainerHello"


class Hello:
    """Answers one RPC, as grpclib takes handlers."""

    def __mapping__(self) -> Mapping[str, Handler]:
        async def serve(stream: Any) -> None:
            await stream.send_message(await stream.recv_message())

        return {PATH: Handler(serve, Cardinality.UNARY_UNARY, Empty, Empty)}


class WatchedServer(GrpcServer):
    """Remembers its connections."""

    protocols: list[H2Protocol]

    def _protocol_factory(self) -> H2Protocol:
        self.protocols.append(super()._protocol_factory())
        return self.protocols[-1]


def test_a_connection_does_not_remember_all_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(H2Connection, "MAX_CLOSED_STREAMS", H2Connection.MAX_CLOSED_STREAMS)
    monkeypatch.setattr(grpc_server, "CLOSED_STREAMS_KEPT", 20)

    async def scenario() -> None:
        server = WatchedServer([Hello()])
        server.protocols = []
        listener = socket.create_server(("127.0.0.1", 0))
        await server.start(sock=listener)
        channel = Channel("127.0.0.1", listener.getsockname()[1])
        try:
            hello = UnaryUnaryMethod[Empty, Empty](channel, PATH, Empty, Empty)
            for _ in range(100):
                assert await hello(Empty()) == Empty()
            [protocol] = server.protocols
            connection = protocol.connection._connection
            assert connection.highest_inbound_stream_id >= 199
            assert len(connection.streams) <= 2, "those that are open, and the last one"
            assert len(connection._closed_streams) == 20
        finally:
            channel.close()
            server.close()
            await server.wait_closed()

    asyncio.run(scenario())


class Caller:
    """Stands for what the context of a request holds."""


def test_an_answer_that_is_kept_for_repeats_keeps_nothing_of_its_request() -> None:
    context: ContextVar[Caller] = ContextVar("caller")

    async def scenario() -> None:
        cache = _AnswerCache(kept=10, kept_bytes=10_000)
        executions: list[int] = []

        async def execute() -> api.DictGetResponse:
            executions.append(1)
            await asyncio.sleep(0)
            return api.DictGetResponse(value=b"the value")

        async def request() -> weakref.ref[Caller]:
            who = Caller()
            context.set(who)
            first, repeat = await asyncio.gather(*(cache.run(("DictPop", "key"), execute) for _ in range(2)))
            assert first == repeat == api.DictGetResponse(value=b"the value")
            return weakref.ref(who)

        who = await asyncio.create_task(request())
        await asyncio.sleep(0)
        gc.collect()
        assert who() is None, "the caller of a request that is over is still in memory"
        assert await cache.run(("DictPop", "key"), execute) == api.DictGetResponse(value=b"the value")
        assert len(executions) == 1

    asyncio.run(scenario())

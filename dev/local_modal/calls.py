"""Function calls, their inputs and their streams of data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from modal_proto import api_pb2 as api

_NO_ARGUMENTS = api.FunctionInput()
"""Of all inputs that have ended and had none in a blob: an empty message of its own takes 500 bytes."""


@dataclass(slots=True)
class Input:
    """One input of a call, over all its attempts."""

    input_id: str
    call: Call
    index: int
    payload: api.FunctionInput
    retry_count: int = 0
    """Attempts that failed and were repeated by the retry policy; a lost container doesn't count."""
    losses: int = 0
    """Containers that died while running it."""
    queued: bool = False
    """It waits for a container; while its container is being preempted, both this and `running_on` hold."""
    running_on: set[str] = field(default_factory=set)
    """The containers whose result counts; more than one only after a redelivery."""
    cancel_requested: bool = False
    output: api.FunctionGetOutputsItem | None = None
    """The result, once there is one."""

    @property
    def done(self) -> bool:
        """Whether it has its final result."""
        return self.output is not None

    def forget_arguments(self, args_blob_id: str) -> None:
        """It has ended: its arguments may be large, and nobody needs them any more. But a blob that they are
        in has to be removed some time.
        """
        self.payload = api.FunctionInput(args_blob_id=args_blob_id) if args_blob_id else _NO_ARGUMENTS

    def to_bytes(self) -> bytes:
        """For the store: a line of JSON, then the result or, before there is one, the arguments."""
        fields = {
            "call_id": self.call.call_id,
            "index": self.index,
            "retry_count": self.retry_count,
            "cancel_requested": self.cancel_requested,
            "done": self.done,
            "args_blob_id": self.payload.args_blob_id,
        }
        body = self.payload if self.output is None else self.output
        return json.dumps(fields).encode() + b"\n" + body.SerializeToString()

    @classmethod
    def from_bytes(cls, input_id: str, data: bytes, calls: Mapping[str, Call]) -> Input:
        """From the store; its call is one of `calls`."""
        header, _, body = data.partition(b"\n")
        fields = json.loads(header)
        item = cls(
            input_id,
            calls[fields["call_id"]],
            fields["index"],
            _NO_ARGUMENTS,
            retry_count=fields["retry_count"],
            cancel_requested=fields["cancel_requested"],
        )
        if fields["done"]:
            item.output = api.FunctionGetOutputsItem.FromString(body)
            item.forget_arguments(fields.get("args_blob_id", ""))
        else:
            item.payload = api.FunctionInput.FromString(body)
        return item


class Changes:
    """Lets any number of readers wait for the next change of something. The event is made when somebody
    waits: most calls are never waited for, and there are many.
    """

    __slots__ = ("_changed",)

    def __init__(self) -> None:
        self._changed: asyncio.Event | None = None

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change; to be taken before looking at what may change."""
        if self._changed is None:
            self._changed = asyncio.Event()
        return self._changed

    def notify(self) -> None:
        """Wake everybody who waits for a change."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None


class Stream(Changes):
    """An ordered stream of data chunks of a call, read by index."""

    __slots__ = ("chunks", "closed", "held_bytes", "released")

    def __init__(self) -> None:
        super().__init__()
        self.chunks: dict[int, api.DataChunk] = {}
        """By index; a repeated put changes nothing."""
        self.released = 0
        """Chunks up to this index have been read for good."""
        self.held_bytes = 0
        """The size of all chunks in memory."""
        self.closed = False
        """Nobody reads it any more: whatever comes is dropped."""

    def append(self, chunks: Iterable[api.DataChunk]) -> None:
        """Add chunks and wake the readers."""
        for chunk in chunks:
            if not self.closed and chunk.index > self.released and chunk.index not in self.chunks:
                self.chunks[chunk.index] = chunk
                self.held_bytes += len(chunk.data)
        self.notify()

    def release(self, index: int) -> None:
        """Drop the chunk of that index, the first one that is left."""
        self.held_bytes -= len(self.chunks.pop(index).data)
        self.released = index
        self.notify()

    def trim(self, index: int, limit: int) -> None:
        """Drop the first chunks, at most up to that index, while more than `limit` bytes are held."""
        while self.held_bytes > limit and self.released < index and self.released + 1 in self.chunks:
            self.release(self.released + 1)

    def close(self) -> None:
        """Drop everything that is there and that will come."""
        self.closed = True
        self.chunks.clear()
        self.held_bytes = 0
        self.notify()

    async def room(self, limit: int) -> None:
        """Return when no more than `limit` bytes are held: a writer that waits for it can't run far ahead of
        its reader.
        """
        while self.held_bytes > limit:
            await self.changed.wait()

    def after(self, index: int) -> list[api.DataChunk]:
        """The chunks that follow `index` without a gap."""
        found = []
        while (chunk := self.chunks.get(index + 1)) is not None:
            found.append(chunk)
            index += 1
        return found


class Call(Changes):
    """One function call with one input (spawn, remote) or many (map).

    Args:
        function_id: the variant that was called.
        durable: whether it outlives the server, as calls of deployed apps do.
    """

    __slots__ = (
        "_data_in",
        "_data_out",
        "answering",
        "app_id",
        "call_id",
        "call_type",
        "created_at",
        "durable",
        "finished",
        "function_id",
        "inputs",
        "invocation_type",
        "kept_bytes",
        "parent_input_id",
        "web",
    )

    def __init__(
        self,
        call_id: str,
        function_id: str,
        app_id: str,
        call_type: int,
        invocation_type: int,
        created_at: float,
        parent_input_id: str = "",
        durable: bool = False,
    ) -> None:
        super().__init__()
        self.call_id = call_id
        self.function_id = function_id
        self.app_id = app_id
        self.call_type = call_type
        self.invocation_type = invocation_type
        self.created_at = created_at
        self.parent_input_id = parent_input_id
        self.durable = durable
        self.inputs: list[Input] = []
        self.finished: list[Input] = []
        """In the order of their ends: a reader's position in it is its cursor."""
        self.kept_bytes = 0
        """What it takes, counted at its end."""
        self.web = False
        """A web request: what comes out goes to its client at once."""
        self.answering = ""
        """The container whose response the client of a web request gets, once that has begun."""
        self._data_out: Stream | None = None
        self._data_in: Stream | None = None

    @property
    def spawned(self) -> bool:
        """Whether its caller may come back for the result at any time."""
        return self.invocation_type == api.FUNCTION_CALL_INVOCATION_TYPE_ASYNC

    @property
    def unfinished(self) -> int:
        """Inputs without a result."""
        return len(self.inputs) - len(self.finished)

    @property
    def data_out(self) -> Stream:
        """What a generator yields."""
        if self._data_out is None:
            self._data_out = Stream()
        return self._data_out

    @property
    def data_in(self) -> Stream:
        """What is passed to running user code, such as the body of a web request."""
        if self._data_in is None:
            self._data_in = Stream()
        return self._data_in

    def close_data_in(self) -> None:
        """The call has ended: nothing more is passed to user code."""
        if self._data_in is not None:
            self._data_in.close()

    def blob_ids(self) -> set[str]:
        """The blobs that it has as arguments, results or chunks of its streams."""
        found = {item.payload.args_blob_id for item in self.inputs}
        found.update(item.output.result.data_blob_id for item in self.inputs if item.output is not None)
        found.update(chunk.data_blob_id for stream in self.streams() for chunk in stream.chunks.values())
        return found - {""}

    def let_go(self) -> None:
        """It is forgotten: free its inputs now, and not when the garbage collector next looks at everything.
        That takes a quarter more objects than it last found, which here are mostly finished calls.
        """
        self.inputs.clear()
        self.finished.clear()

    def streams(self) -> list[Stream]:
        """Those of its streams that have been used."""
        return [stream for stream in (self._data_out, self._data_in) if stream is not None]

    def notify(self) -> None:
        """Wake everybody who waits for a change, of its streams, too: they end with their call."""
        super().notify()
        for stream in self.streams():
            stream.notify()

    def to_bytes(self) -> bytes:
        """For the store, without the inputs."""
        names = ("call_id", "function_id", "app_id", "call_type", "invocation_type", "created_at")
        fields = {name: getattr(self, name) for name in (*names, "parent_input_id", "durable")}
        return json.dumps(fields).encode()

"""The records that the services share: apps, functions, calls, inputs and containers."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from modal_proto import api_pb2 as api

RUNNING_STATES = (api.APP_STATE_EPHEMERAL, api.APP_STATE_DETACHED, api.APP_STATE_DEPLOYED)


@dataclass
class App:
    """A deployed or ephemeral app. Times are epoch seconds, 0 = never."""

    app_id: str
    description: str
    environment: str
    state: int = api.APP_STATE_INITIALIZING
    name: str = ""
    created_at: float = 0.0
    deployed_at: float = 0.0
    stopped_at: float = 0.0
    generation: int = 0
    """Counts publishes; the containers of an older generation are let out."""
    function_ids: dict[str, str] = field(default_factory=dict)
    class_ids: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    last_heartbeat: float = 0.0

    @property
    def running(self) -> bool:
        """Whether its functions can be called."""
        return self.state in RUNNING_STATES

    @property
    def deployed(self) -> bool:
        """Whether it outlives its client."""
        return self.state == api.APP_STATE_DEPLOYED

    def to_bytes(self) -> bytes:
        """For the store."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> App:
        """From the store."""
        return cls(**json.loads(data))


@dataclass
class FunctionRecord:
    """A function of an app. What `definition` says takes effect when its app is published."""

    function_id: str
    app_id: str
    name: str
    handle: api.FunctionHandleMetadata
    definition: api.Function | None = None
    """What containers run now; None before the first publish."""
    staged: api.Function | None = None
    """What the next publish puts in force."""
    autoscaler: api.AutoscalerSettings | None = None
    """Settings changed after the deployment; until the next one."""

    def data(self) -> api.FunctionData:
        """The function as the SDK reads it back."""
        definition = self.staged or self.definition or api.Function()
        data = api.FunctionData(
            ranked_functions=[api.FunctionData.RankedFunction(rank=0, function=definition)]
        )
        for descriptor in data.DESCRIPTOR.fields:
            source = definition.DESCRIPTOR.fields_by_name.get(descriptor.name)
            if source is None or descriptor.name == "ranked_functions" or source.type != descriptor.type:
                continue
            value = getattr(definition, descriptor.name)
            if source.message_type is not None:
                if source.is_repeated or definition.HasField(source.name):
                    getattr(data, descriptor.name).MergeFrom(value)
            elif source.is_repeated:
                getattr(data, descriptor.name).extend(value)
            else:
                setattr(data, descriptor.name, value)
        return data

    def to_bytes(self) -> bytes:
        """For the store."""
        return json.dumps(
            {
                "function_id": self.function_id,
                "app_id": self.app_id,
                "name": self.name,
                "handle": _text(self.handle),
                "definition": _text(self.definition),
                "staged": _text(self.staged),
                "autoscaler": _text(self.autoscaler),
            }
        ).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> FunctionRecord:
        """From the store."""
        fields = json.loads(data)
        handle = api.FunctionHandleMetadata.FromString(base64.b64decode(fields["handle"]))
        return cls(
            fields["function_id"],
            fields["app_id"],
            fields["name"],
            handle,
            _function(fields["definition"]),
            _function(fields["staged"]),
            _autoscaler(fields.get("autoscaler", "")),
        )


def _text(message: Any) -> str:
    return "" if message is None else base64.b64encode(message.SerializeToString()).decode()


def _autoscaler(text: str) -> api.AutoscalerSettings | None:
    return api.AutoscalerSettings.FromString(base64.b64decode(text)) if text else None


def _function(text: str) -> api.Function | None:
    return api.Function.FromString(base64.b64decode(text)) if text else None


@dataclass
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

    def to_bytes(self) -> bytes:
        """For the store: a line of JSON, then the result or, before there is one, the arguments."""
        fields = {
            "call_id": self.call.call_id,
            "index": self.index,
            "retry_count": self.retry_count,
            "cancel_requested": self.cancel_requested,
            "done": self.done,
        }
        body = self.payload if self.output is None else self.output
        return json.dumps(fields).encode() + b"\n" + body.SerializeToString()


@dataclass
class Stream:
    """An ordered stream of data chunks of a call, read by index."""

    chunks: dict[int, api.DataChunk] = field(default_factory=dict)
    """By index; a repeated put changes nothing."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Replaced at every change."""
    released: int = 0
    """Chunks up to this index have been read for good."""
    held_bytes: int = 0
    """The size of all chunks in memory."""
    closed: bool = False
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

    def notify(self) -> None:
        """Wake everybody who waits for a change."""
        event, self.changed = self.changed, asyncio.Event()
        event.set()


@dataclass
class Call:
    """One function call with one input (spawn, remote) or many (map)."""

    call_id: str
    function_id: str
    """The variant that was called."""
    app_id: str
    call_type: int
    invocation_type: int
    created_at: float
    parent_input_id: str = ""
    durable: bool = False
    """Whether it outlives the server, as calls of deployed apps do."""
    inputs: list[Input] = field(default_factory=list)
    finished: list[Input] = field(default_factory=list)
    """In the order of their ends: a reader's position in it is its cursor."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Replaced at every change, so that any number of readers can wait for the next one."""
    data_out: Stream = field(default_factory=Stream)
    data_in: Stream = field(default_factory=Stream)
    web: bool = False
    """A web request: what comes out goes to its client at once."""
    answering: str = ""
    """The container whose response the client of a web request gets, once that has begun."""

    @property
    def unfinished(self) -> int:
        """Inputs without a result."""
        return len(self.inputs) - len(self.finished)

    def notify(self) -> None:
        """Wake everybody who waits for a change."""
        event, self.changed = self.changed, asyncio.Event()
        event.set()

    def to_bytes(self) -> bytes:
        """For the store, without the inputs."""
        names = ("call_id", "function_id", "app_id", "call_type", "invocation_type", "created_at")
        fields = {name: getattr(self, name) for name in (*names, "parent_input_id", "durable")}
        return json.dumps(fields).encode()


@dataclass
class Task:
    """A container."""

    task_id: str
    app_id: str
    function_id: str
    """The variant whose inputs it runs."""
    function_name: str
    environment: str
    enqueued_at: float
    started_at: float = 0.0
    finished_at: float = 0.0
    result: api.GenericResult | None = None
    """Why it failed to start, as it reported itself."""
    last_words: deque[str] = field(default_factory=lambda: deque(maxlen=5))
    """The last lines on its stderr."""
    stop_reason: str = ""
    """Why the server stopped it; empty if it ended by itself."""
    exit_note: str = ""
    """What the worker found out about its end, such as that it was out of memory; set before it tells the
    engine of the end.
    """
    inputs_wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its pending request for inputs may have an answer."""
    heartbeat_wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its pending heartbeat may have an answer."""
    redeliveries: list[Input] = field(default_factory=list)
    """Running inputs that the fault API hands to this container as well."""
    cancelling: dict[str, float] = field(default_factory=dict)
    """Input ids to cancel here, with the time when the container was last told."""
    exited: asyncio.Event = field(default_factory=asyncio.Event)

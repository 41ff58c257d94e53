"""The records that the services share: apps, functions, calls, inputs and containers."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from modal_proto import api_pb2 as api

from local_modal.calls import Input

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
    staged_handle: api.FunctionHandleMetadata | None = None
    """The handle that belongs to that."""
    autoscaler: dict[str, api.AutoscalerSettings] = field(default_factory=dict)
    """Settings changed after the deployment, until the next one, by the id of the function or variant with
    them. That variants don't inherit them is an assumption.
    """

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
                "staged_handle": _text(self.staged_handle),
                "autoscaler": {key: _text(changed) for key, changed in self.autoscaler.items()},
            }
        ).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> FunctionRecord:
        """From the store."""
        fields = json.loads(data)
        handle = api.FunctionHandleMetadata.FromString(base64.b64decode(fields["handle"]))
        staged_handle = fields.get("staged_handle", "")
        return cls(
            fields["function_id"],
            fields["app_id"],
            fields["name"],
            handle,
            _function(fields["definition"]),
            _function(fields["staged"]),
            api.FunctionHandleMetadata.FromString(base64.b64decode(staged_handle)) if staged_handle else None,
            {key: _autoscaler(text) for key, text in (fields.get("autoscaler") or {}).items()},
        )


def _text(message: Any) -> str:
    return "" if message is None else base64.b64encode(message.SerializeToString()).decode()


def _autoscaler(text: str) -> api.AutoscalerSettings:
    return api.AutoscalerSettings.FromString(base64.b64decode(text))


def _function(text: str) -> api.Function | None:
    return api.Function.FromString(base64.b64decode(text)) if text else None


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
    attempts: dict[str, int] = field(default_factory=dict)
    """Which attempt (the retry count) of each running input was handed to it last."""
    cancelling: dict[str, float] = field(default_factory=dict)
    """Input ids to cancel here, with the time when the container was last told."""
    exited: asyncio.Event = field(default_factory=asyncio.Event)

"""Which requests are struck by which fault: the rules of fault injection, without I/O.

A request comes by (`Visit`), every fault in force looks at it, and what is left is what happens to it
(`Strike`). Chance is a function of the server's seed, the fault's id, the name of what was requested and how
often that was requested before. Requests of different names can therefore arrive in any order without
changing each other's fate, and the same seed repeats a run.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from grpclib.const import Status

CONTAINER_START = "START"
"""What the start of a container is called where the name of an RPC is expected."""
HTTP_PREFIX = "HTTP "
"""Begins the names of HTTP requests: `HTTP PUT /blob/bl-123`."""

FAIL, STALL, LATE, TWICE, LOSE, LATENCY = "fail", "stall", "late", "twice", "lose", "latency"
EFFECTS = {
    FAIL: "answer with an error instead of executing it",
    STALL: "never answer, until the client gives up or the fault ends",
    LATE: "execute it and answer after a delay",
    TWICE: "execute it twice, as if its first answer had been lost and the SDK had repeated it",
    LOSE: "execute it, then break the stream (or the connection) instead of answering",
    LATENCY: "a longer way: half of the delay before it is executed, half before the answer",
}
"""What a fault does to a request."""
ENDS_THE_REQUEST = frozenset({FAIL, STALL, LATE, TWICE, LOSE})
"""A request suffers one of these; any number of latencies add up with it."""

PRESETS: dict[str, dict[str, Any]] = {
    "queue-full": {
        "effect": FAIL,
        "rpc": "QueuePut",
        "status": "RESOURCE_EXHAUSTED",
        "message": "The queue partition is full.",
    },
    "reload-refused": {
        "effect": FAIL,
        "rpc": "VolumeReload",
        "status": "FAILED_PRECONDITION",
        "message": "there are open files preventing the operation",
    },
    "quota-inputs": {
        "effect": FAIL,
        "rpc": "FunctionMap,FunctionPutInputs",
        "status": "RESOURCE_EXHAUSTED",
        "message": "The limit of pending inputs of this function is reached.",
    },
    "quota-containers": {"effect": STALL, "rpc": CONTAINER_START},
    "start-fails": {"effect": FAIL, "rpc": CONTAINER_START, "message": "The image could not be pulled."},
    "start-stalls": {"effect": STALL, "rpc": CONTAINER_START},
    "http-cut": {"effect": LOSE, "rpc": f"{HTTP_PREFIX}*", "connection": True},
}
"""Names for what is asked for often: an effect with its usual settings."""
KINDS = (*EFFECTS, *PRESETS)


class FaultRefused(ValueError):
    """The fault makes no sense; the message says why, for whoever asked for it."""


@dataclass(frozen=True)
class FaultSpec:
    """A fault as it is asked for; `fault` is one of `KINDS`, everything else narrows or shapes it.

    Raises:
        FaultRefused: settings that contradict each other or don't exist.
    """

    fault: str
    effect: str = ""
    """One of `EFFECTS`; follows from `fault`."""
    rpc: str = ""
    """Globs, separated by commas, on RPC names (`Queue*`), `HTTP METHOD /path` or `START`."""
    caller: str = "any"
    """"client", "container" or "any"."""
    function: str = ""
    """A glob on the function whose container calls (or, for START, starts)."""
    object: str = ""
    """A glob on the name or id of the Queue, Dict, Volume, Function... that the request is about."""
    probability: float = 1.0
    count: int | None = None
    """How many requests it strikes; None = all while it is in force."""
    after: int = 0
    """How many requests of each name pass before the first is struck."""
    seconds: float | None = None
    """How long it is in force."""
    limit: int = 0
    """Strikes only while at least so many inputs wait (containers run, for START)."""
    status: str = "UNAVAILABLE"
    """The gRPC status of `fail`."""
    message: str = ""
    delay: float = 0.0
    """Seconds, of `late` and `latency`."""
    jitter: float = 0.0
    """Seconds by which each delay differs at most, either way."""
    forget_key: bool = False
    """`twice` without regard to the idempotency key, as if the server had lost it."""
    connection: bool = False
    """`lose` breaks the client's whole connection rather than one stream."""

    def __post_init__(self) -> None:
        if self.fault not in KINDS:
            raise FaultRefused(f"fault: {self.fault!r} is none of {', '.join(KINDS)}")
        if self.effect not in EFFECTS:
            raise FaultRefused(f"effect: {self.effect!r} is none of {', '.join(EFFECTS)}")
        if not self.rpc:
            raise FaultRefused(f"rpc: {self.fault} needs the name of an RPC, or a glob such as 'Queue*'")
        if self.caller not in ("any", "client", "container"):
            raise FaultRefused(f"caller: {self.caller!r} is none of any, client, container")
        if self.status not in Status.__members__ or self.status == "OK":
            raise FaultRefused(f"status: {self.status!r} is no gRPC status of an error, such as UNAVAILABLE")
        if not 0.0 < self.probability <= 1.0:
            raise FaultRefused(f"probability: {self.probability} is not above 0 and at most 1")
        if self.count is not None and self.count < 1:
            raise FaultRefused(f"count: {self.count} is not at least 1")
        if self.seconds is not None and self.seconds <= 0:
            raise FaultRefused(f"seconds: {self.seconds} is not above 0")
        if min(self.after, self.limit, self.delay, self.jitter) < 0:
            raise FaultRefused("after, limit, delay and jitter are never negative")
        if self.effect in (LATE, LATENCY) and not self.delay + self.jitter:
            raise FaultRefused(f"delay: {self.fault} needs seconds")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> FaultSpec:
        """From JSON: {"fault": one of `KINDS`, ...}, with what the preset or the effect implies added.

        Raises:
            FaultRefused: unknown or contradicting settings.
        """
        types = {known.name: known.type for known in fields(cls)}
        if unknown := sorted(set(settings) - set(types)):
            raise FaultRefused(f"{', '.join(unknown)}: no such setting; there are {', '.join(types)}")
        kind = str(settings.get("fault", ""))
        implied = PRESETS.get(kind, {"effect": kind, "rpc": "*"} if kind == LATENCY else {"effect": kind})
        given = {name: value for name, value in settings.items() if value is not None}
        for name, value in given.items():
            if not isinstance(value, _ACCEPTED[str(types[name])]) or (
                isinstance(value, bool) and types[name] != "bool"
            ):
                raise FaultRefused(f"{name}: {value!r} is not of type {types[name]}")
        return cls(**{"fault": kind, **implied, **given})

    def covers(self, name: str) -> bool:
        """Whether requests of this name are meant: an RPC, `HTTP METHOD /path` or `START`.

        A bare glob means RPCs. A latency of everything means HTTP as well: the way to the blobs is as long.
        """
        plane = _plane(name)
        return any(
            fnmatchcase(name, glob)
            and (_plane(glob) == plane or (self.effect == LATENCY and glob == "*" and plane == HTTP_PREFIX))
            for glob in self.rpc.split(",")
        )

    def to_json(self) -> dict[str, Any]:
        """What `of` takes, without settings that are at their defaults."""
        return {
            known.name: value
            for known in fields(self)
            if (value := getattr(self, known.name)) != known.default or known.name == "fault"
        }


_ACCEPTED: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "int | None": (int,),
    "float | None": (int, float),
}


def _plane(name: str) -> str:
    if name == CONTAINER_START:
        return CONTAINER_START
    return HTTP_PREFIX if name.startswith(HTTP_PREFIX) else ""


@dataclass
class Fault:
    """A fault that has been set. Times in epoch seconds of the server's clock."""

    fault_id: str
    spec: FaultSpec
    set_at: float
    struck: int = 0
    state: str = "active"
    """"active", "spent" (its count), "expired" (its seconds) or "cleared"."""
    seen: Counter[str] = field(default_factory=Counter)
    """Requests that it matched so far, by name."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it stops being in force; lets go what it stalls."""

    @property
    def expires_at(self) -> float | None:
        """When it ends by itself."""
        return None if self.spec.seconds is None else self.set_at + self.spec.seconds

    def to_json(self) -> dict[str, Any]:
        """For lists: its settings, and how it stands."""
        return {"id": self.fault_id, "state": self.state, "struck": self.struck, **self.spec.to_json()}


@dataclass(frozen=True)
class Visit:
    """A request that might be struck. What takes time to find out is a function."""

    name: str
    """An RPC, `HTTP METHOD /path` or `START`."""
    task_id: str = ""
    """The calling (or starting) container; empty for clients."""
    function: Callable[[], str] = str
    """The name of that container's function."""
    objects: Callable[[], Iterable[str]] = tuple
    """Names and ids of what the request is about."""
    load: Callable[[], int] = int
    """Inputs that wait for the function it is about; for START, containers that run."""
    repeatable: bool = True
    """Whether it can be executed twice: streams can't."""

    @property
    def caller(self) -> str:
        """For the journal: who asks."""
        return self.task_id or "client"


@dataclass(frozen=True)
class Strike:
    """What a fault does to one request."""

    fault: Fault
    delay: float
    """Seconds, drawn for this request."""

    @property
    def effect(self) -> str:
        """One of `EFFECTS`."""
        return self.fault.spec.effect

    @property
    def status(self) -> Status:
        """What `fail` answers."""
        return Status[self.fault.spec.status]

    @property
    def message(self) -> str:
        """What `fail` says; names the fault, so that a surprised reader of a log finds its cause."""
        return f"{self.fault.spec.message or 'Injected fault'} [fault {self.fault.fault_id}]"


class Faults:
    """The faults of one server.

    Args:
        seed: all chance derives from it.
        time: the server's clock.
        record: gets every setting, clearing and strike as a JSON object.
    """

    def __init__(
        self, seed: int, time: Callable[[], float], record: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> None:
        self.seed = seed
        self.armed = False
        """Whether any fault is in force: all that a request pays while there is none."""
        self._time = time
        self._record = record
        self._known: dict[str, Fault] = {}
        self._active: list[Fault] = []

    def add(self, spec: FaultSpec) -> Fault:
        """Put a fault in force. Ids count from "f1", so a repeated run gives the same ones."""
        fault = Fault(f"f{len(self._known) + 1}", spec, self._time())
        self._known[fault.fault_id] = fault
        self._active.append(fault)
        self.armed = True
        self._record({"event": "set", "id": fault.fault_id, "spec": spec.to_json()})
        return fault

    def clear(self, fault_id: str) -> Fault:
        """End a fault; one that has ended already stays as it is.

        Raises:
            FaultRefused: there is none of that id.
        """
        if fault_id not in self._known:
            raise FaultRefused(f"id: there is no fault {fault_id!r}; the command `fault list` shows all")
        fault = self._known[fault_id]
        if fault.state == "active":
            self._end(fault, "cleared")
        fault.ended.set()
        return fault

    def clear_all(self) -> list[Fault]:
        """End all faults, and let go what spent ones still stall; returns those that were in force."""
        cleared = list(self._active)
        for fault in list(self._known.values()):
            self.clear(fault.fault_id)
        return cleared

    def restart(self, seed: int) -> None:
        """Begin as a new server with this seed would: without faults, ids and counts."""
        self.release()
        self.seed = seed
        self._known.clear()
        self._active.clear()
        self.armed = False
        self._record({"event": "started", "seed": seed})

    def release(self) -> None:
        """Let go everything that is stalled."""
        for fault in self._known.values():
            fault.ended.set()

    def known(self) -> list[Fault]:
        """All faults since the start of the server, ended ones too."""
        self._expire()
        return list(self._known.values())

    def strikes(self, visit: Visit) -> list[Strike]:
        """What happens to this request; counts and records it."""
        self._expire()
        found: list[Strike] = []
        ended = False
        for fault in list(self._active):
            spec = fault.spec
            if (ended and spec.effect in ENDS_THE_REQUEST) or not self._matches(spec, visit):
                continue
            number = fault.seen[visit.name]
            fault.seen[visit.name] += 1
            if number < spec.after or self._draw(fault, visit.name, number, "hit") >= spec.probability:
                continue
            spread = (2 * self._draw(fault, visit.name, number, "delay") - 1) * spec.jitter
            strike = Strike(fault, max(0.0, spec.delay + spread))
            found.append(strike)
            ended = ended or spec.effect in ENDS_THE_REQUEST
            fault.struck += 1
            self._record(
                {
                    "event": "strike",
                    "id": fault.fault_id,
                    "effect": spec.effect,
                    "rpc": visit.name,
                    "caller": visit.caller,
                    "number": number,
                    "delay": round(strike.delay, 6),
                }
            )
            if fault.struck == spec.count:
                self._end(fault, "spent")
        return found

    def _matches(self, spec: FaultSpec, visit: Visit) -> bool:
        if not spec.covers(visit.name) or (spec.effect == TWICE and not visit.repeatable):
            return False
        if spec.caller != "any" and (spec.caller == "container") != bool(visit.task_id):
            return False
        if spec.function and not fnmatchcase(visit.function(), spec.function):
            return False
        if spec.object and not any(fnmatchcase(name, spec.object) for name in visit.objects()):
            return False
        return not spec.limit or visit.load() >= spec.limit

    def _draw(self, fault: Fault, name: str, number: int, purpose: str) -> float:
        """A number from 0 to below 1 that is the same in every run with this seed."""
        text = f"{self.seed}/{fault.fault_id}/{name}/{number}/{purpose}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big") / 2**56

    def _expire(self) -> None:
        now = self._time()
        for fault in [fault for fault in self._active if fault.expires_at is not None]:
            if now >= (fault.expires_at or 0.0):
                self._end(fault, "expired")
                fault.ended.set()

    def _end(self, fault: Fault, state: str) -> None:
        fault.state = state
        self._active.remove(fault)
        self.armed = bool(self._active)
        if state != "spent":
            self._record({"event": state, "id": fault.fault_id})

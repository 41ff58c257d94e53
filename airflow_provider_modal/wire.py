"""What do an executor and a worker say to each other?

A task call travels from the executor to the function ``execute_task``; a completion event travels back
through the event Queue and, for a scheduler that was not there, waits in the state Dict under
``result:{dispatch}``. A claim in the same Dict says which delivery of the call may run it. All are plain
dicts of JSON types with a version, so that either side can be newer than the other and say so. A field that
the other side doesn't know is ignored: what it must not ignore needs another version.

This module imports the standard library only: both sides, and nothing else of theirs, share it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

WIRE_VERSION = 1

_CALL = re.compile(r"fc-[0-9A-Za-z]+")

Kind = Literal["task", "command", "callback", "connection_test"]
"""``task``, ``callback`` and ``connection_test``: an Airflow 3 workload as JSON; ``command``: an Airflow 2
``airflow tasks run`` argument list. A callback's dispatch is its id in Airflow."""

Outcome = Literal["done", "failed", "not_started", "obsolete"]
"""``done``: supervised to its end, Airflow's database knows the task's state. ``failed``: the infrastructure
failed, ``reason`` says how. ``not_started``: it failed before anything of the user's ran, so another dispatch
may do better. ``obsolete``: Airflow refused this copy, another one counts; say nothing."""

Phase = Literal["claimed", "started"]
"""``claimed``: nothing of the user's ran yet, another delivery may take over. ``started``: it may have."""

ContainerLoss = Literal["fail", "rerun"]


class WireError(ValueError):
    """A message is of another version or malformed; the text says what to do."""


@dataclass(frozen=True)
class TaskKey:
    """Coordinates of a task instance's try, as in Airflow's ``TaskInstanceKey``."""

    dag_id: str
    task_id: str
    run_id: str
    try_number: int
    map_index: int = -1


@dataclass(frozen=True)
class TaskCall:
    """One dispatch: one QUEUED transition of a task instance, handed to Modal.

    :param dispatch: UUID of the dispatch; Airflow's pre-assigned one where there is one.
    :param kind: how to read ``workload``.
    :param key: the task instance's try; None for what is no task.
    :param workload: the workload as Airflow serialised it (JSON text). Holds Airflow's own workload token, so
        it must not be logged.
    :param log_path: where below the log folder the task's log belongs; as Airflow rendered it.
    :param partition: partition of the event Queue for the completion event.
    :param timeout: seconds the supervised run may take before it is stopped.
    :param env: environment variables for the task's process.
    :param requirements: packages of the task's own, on top of the image's.
    :param on_container_loss: what a second delivery does when the first may have started user code.
    :param memory: MiB at which the container is killed, where the task asked for a limit of its own.
    :param log_lines: how many last lines of the task's log the reason of a failure ends with.
    :param wakes_scheduler: the end of this task must wake a serverless scheduler.
    :param lost_after: seconds without a renewal after which a started claim is a lost container's.
    :param queued_at: when the executor took the workload, seconds since the epoch.
    """

    dispatch: str
    kind: Kind
    key: TaskKey | None
    workload: str = field(repr=False)
    log_path: str | None
    partition: str
    timeout: float
    env: dict[str, str] = field(default_factory=dict, repr=False)
    requirements: list[str] = field(default_factory=list)
    on_container_loss: ContainerLoss = "fail"
    memory: int | None = None
    log_lines: int = 0
    wakes_scheduler: bool = True
    lost_after: float = 30.0
    queued_at: float = field(default_factory=time.time)

    def to_wire(self) -> dict[str, Any]:
        """Return the dict that is the function's only argument."""
        return {"wire": WIRE_VERSION, **asdict(self)}

    @classmethod
    def from_wire(cls, message: Mapping[str, Any]) -> TaskCall:
        """Read a task call.

        :raises WireError: another version, or not a task call.
        """
        known = _checked(message, cls, "task call")
        try:
            return cls(**{**known, "key": task_key(known["key"], known["kind"])})
        except (KeyError, TypeError) as error:
            raise WireError(f"malformed task call: {error}") from None

    @property
    def subject(self) -> str:
        """What the dispatch is about, for people."""
        return str(self.key or self.kind.replace("_", " "))


@dataclass(frozen=True)
class Completion:
    """How a dispatch ended.

    :param key: the task instance's try; None for what is no task.
    :param reason: for ``failed``: a sentence with what happened and what to do.
    :param call_id: id of the function call.
    :param container: Modal task id of the container.
    :param started_at: when the worker took the call, seconds since the epoch.
    :param ended_at: when it ended, seconds since the epoch.
    :param lost_container: Modal task id of the container that had the call before and was lost.
    """

    dispatch: str
    key: TaskKey | None
    outcome: Outcome
    reason: str | None = None
    call_id: str | None = None
    container: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    kind: Kind = "task"
    lost_container: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the dict that is put into Queue and Dict."""
        return {"wire": WIRE_VERSION, **asdict(self)}

    @classmethod
    def from_wire(cls, message: Mapping[str, Any]) -> Completion:
        """Read a completion event.

        :raises WireError: another version, or not a completion event.
        """
        known = _checked(message, cls, "completion event")
        try:
            return cls(**{**known, "key": task_key(known["key"], known["kind"])})
        except (KeyError, TypeError) as error:
            raise WireError(f"malformed completion event: {error}") from None


@dataclass(frozen=True)
class Claim:
    """Which delivery of a dispatch may run it, and how far it got.

    :param token: random id of the delivery; a re-delivery has another one.
    :param container: Modal task id of the container, for messages.
    :param at: seconds since the epoch of the last change.
    :param deliveries: how many deliveries have held the claim so far, this one included.
    :param memory: MiB that the container used at most, as far as it is known.
    """

    token: str
    phase: Phase
    container: str
    at: float
    deliveries: int = 1
    memory: int | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the dict that is put into the state Dict."""
        return {"wire": WIRE_VERSION, **asdict(self)}

    @classmethod
    def from_wire(cls, message: Mapping[str, Any]) -> Claim:
        """Read a claim.

        :raises WireError: another version, or not a claim.
        """
        try:
            return cls(**_checked(message, cls, "claim"))
        except TypeError as error:
            raise WireError(f"malformed claim: {error}") from None


def external_executor_id(dispatch: str, call_id: str | None = None, origin: int | None = None) -> str:
    """Return the value of ``TaskInstance.external_executor_id``: ``{dispatch}/{function call id}``.

    :param origin: Airflow's job id of the scheduler that the worker reports to, where that is gone and
        another one has adopted the task instance; a third part, for whoever adopts it next.
    """
    if not call_id:
        return dispatch
    return f"{dispatch}/{call_id}" if origin is None else f"{dispatch}/{call_id}/{origin}"


def parse_external_executor_id(value: str | None) -> tuple[str | None, str | None]:
    """Return (dispatch, function call id); the latter is None where a scheduler died before writing it."""
    dispatch, call_id, _ = _parts(value)
    return dispatch or None, call_id or None


def is_call_id(value: str | None) -> bool:
    """Whether this is a function call's id: other executors write ids of their own into the same column."""
    return _CALL.fullmatch(value or "") is not None


def origin_of(value: str | None) -> int | None:
    """Return the third part of an external executor id, if it has one."""
    _, _, origin = _parts(value)
    return int(origin) if origin.isdigit() else None


def _parts(value: str | None) -> tuple[str, str, str]:
    dispatch, _, rest = (value or "").partition("/")
    call_id, _, origin = rest.partition("/")
    return dispatch, call_id, origin


def task_key(parts: Mapping[str, Any] | None, kind: Kind) -> TaskKey | None:
    """Return the key of a workload; None for the kinds that have none.

    :raises TypeError: it is none, or lacks a field.
    """
    if parts is None and kind in ("callback", "connection_test"):
        return None
    if not isinstance(parts, Mapping):
        raise TypeError(f"a key must hold fields, found {type(parts).__name__}")
    known = {f.name for f in fields(TaskKey)}
    return TaskKey(**{name: value for name, value in parts.items() if name in known})


def _checked(message: Mapping[str, Any], cls: type[Any], what: str) -> dict[str, Any]:
    """Return the fields that ``cls`` knows, once the version is ours."""
    if not isinstance(message, Mapping) or "wire" not in message:
        raise WireError(f"malformed {what}: not a versioned message")
    if message["wire"] != WIRE_VERSION:
        raise WireError(
            f"{what} of wire version {message['wire']!r}, this side speaks {WIRE_VERSION}: scheduler and "
            "workers are of different releases; redeploy: modalflow create"
        )
    return {known.name: message[known.name] for known in fields(cls) if known.name in message}

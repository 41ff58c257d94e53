"""The gRPC face: who is calling, which service method serves an RPC, and what errors and repeats look like to
the SDK.

Two facts of the SDK shape this module. It repeats a unary call up to four times on UNKNOWN, INTERNAL,
UNAVAILABLE and the like, so a bug must never surface as one of those; and every logical call carries one
`x-idempotency-key` over all its attempts, so an answer that was lost can be given again instead of executing
twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar, cast

from google.protobuf.message import Message
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from modal_proto.api_grpc import ModalClientBase

from local_modal import fault_rpc
from local_modal.faults import Faults, Visit
from local_modal.stats import Stats

if TYPE_CHECKING:
    import grpclib.server

    from local_modal.access import Access
    from local_modal.server import Server

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

TASK_ID_HEADER, CONTAINER_SECRET_HEADER = "x-local-task-id", "x-local-container-secret"
WRONG_TOKEN = (
    "This local Modal server has another token. It is the MODAL_TOKEN_SECRET that "
    "`python -m local_modal env --state-dir DIR` prints."
)

# Executing one of these twice would change the outcome, be it only that the second answer is NOT_FOUND or
# ALREADY_EXISTS; all others may simply be executed again. QueueGet is missing on purpose: it must end when
# its client is gone, or it would take an item for nobody. Its service replays what it has taken. A restart
# of the server forgets the answers, so that a repeat across it executes twice.
REPLAYED = frozenset(
    {
        "AppCreate",
        "AppPublish",
        "AppRollover",
        "ClassCreate",
        "DictClear",
        "DictContains",
        "DictDelete",
        "DictGetOrCreate",
        "DictPop",
        "DictUpdate",
        "EnvironmentCreate",
        "EnvironmentDelete",
        "EnvironmentUpdate",
        "FunctionCallPutDataOut",
        "FunctionFinishInputs",
        "FunctionMap",
        "FunctionPrecreate",
        "FunctionPutInputs",
        "QueueClear",
        "QueueDelete",
        "QueueGetOrCreate",
        "QueuePut",
        "SecretDelete",
        "SecretGetOrCreate",
        "TunnelStart",
        "VolumeCopyFiles",
        "VolumeCopyFiles2",
        "VolumeDelete",
        "VolumeGetOrCreate",
        "VolumePutFiles",
        "VolumePutFiles2",
        "VolumeRemoveFile",
        "VolumeRemoveFile2",
    }
)
REPLAY_KEPT = 4096
"""Answers kept for repeats; a repeat follows its first attempt within seconds."""
REPLAY_KEPT_BYTES = 64 * 2**20
"""What those answers may take together."""


class RpcError(Exception):
    """What a handler raises to answer with a gRPC status that the SDK turns into an exception of its own."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Caller(NamedTuple):
    """Who sent the request being served."""

    task_id: str | None
    """The container (`ta-...`) it comes from, its sub-processes included; None for clients outside."""
    idempotency_key: str | None
    """The same for all attempts of one logical call."""
    retry_attempt: int
    """0 for the first attempt."""
    client_type: int
    client_version: str


_caller: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """The caller of the RPC being served; only valid inside a handler (and in tasks that it starts)."""
    return _caller.get()


def container_caller() -> str:
    """The task id of the calling container.

    Raises:
        RpcError: the call comes from outside any container.
    """
    task_id = caller().task_id
    if task_id is None:
        raise RpcError(Status.FAILED_PRECONDITION, "This call is only possible from within a container.")
    return task_id


class Service:
    """One area of the API. Every public coroutine (or, for server streaming, async generator) method whose
    name is an RPC serves it.
    """

    def __init__(self, server: Server) -> None:
        self.server = server

    async def start(self) -> None:
        """Load state; called once, in the order of the server's list, before any request is served."""

    async def stop(self) -> None:
        """Release resources; called in reverse order after the last request."""


class _AnswerCache:
    """Answers by idempotency key: a repeat gets the first execution's answer, also while that is still
    running. The oldest go when there are more than `kept`, or when they take more than `kept_bytes`.
    """

    def __init__(self, kept: int, kept_bytes: int) -> None:
        self._kept = kept
        self._kept_bytes = kept_bytes
        self._bytes = 0
        self._running: dict[tuple[str, str], asyncio.Task[Message]] = {}
        # Serialized: a message takes several times as much, and its task holds on to who called.
        self._answers: OrderedDict[tuple[str, str], tuple[type[Message], bytes]] = OrderedDict()

    async def run(self, key: tuple[str, str], execute: Callable[[], Awaitable[Message]]) -> Message:
        answer = self._answers.get(key)
        if answer is not None:
            message_type, data = answer
            return message_type.FromString(data)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.ensure_future(execute())
            task.add_done_callback(lambda done: self._ended(key, done))
        # Shielded: when the connection drops, the execution goes on, and the repeat finds its answer.
        return await asyncio.shield(task)

    def _ended(self, key: tuple[str, str], task: asyncio.Task[Message]) -> None:
        del self._running[key]
        if task.cancelled() or task.exception() is not None:
            return
        reply = task.result()
        data = reply.SerializeToString()
        self._answers[key] = type(reply), data
        self._bytes += len(data)
        while len(self._answers) > self._kept or self._bytes > self._kept_bytes:
            _, (_, oldest) = self._answers.popitem(last=False)
            self._bytes -= len(oldest)


class Dispatcher:
    """Maps every RPC of the Modal API to the service method of that name; given to grpclib as a handler
    object.

    Args:
        faults: strike requests before they reach a service.
        visit: describes a request to the faults; only asked while there are any.
    """

    def __init__(
        self,
        services: Iterable[Service],
        access: Access,
        stats: Stats,
        faults: Faults,
        visit: Callable[[str, Any, Caller, bool], Visit],
    ) -> None:
        self._services = list(services)
        self._access = access
        self._stats = stats
        self._faults = faults
        self._visit = visit
        self._answers = _AnswerCache(REPLAY_KEPT, REPLAY_KEPT_BYTES)
        self._reported: set[str] = set()

    def __mapping__(self) -> dict[str, Handler]:
        """The grpclib routing table, with every RPC of the installed SDK's API in it."""
        mapping = {}
        for path, (_, cardinality, request_type, reply_type) in _api().items():
            name = path.rsplit("/", 1)[1]
            method = self._method(name)
            if method is None:
                serve = self._unimplemented(name)
            elif cardinality is Cardinality.UNARY_UNARY:
                serve = self._unary(name, method)
            else:
                serve = self._streaming(name, method)
            mapping[path] = Handler(serve, cardinality, request_type, reply_type)
        return mapping

    def implemented(self) -> set[str]:
        """The names of the RPCs that some service serves."""
        return {path.rsplit("/", 1)[1] for path in _api() if self._method(path.rsplit("/", 1)[1]) is not None}

    def _method(self, name: str) -> Callable[[Any], Any] | None:
        found = [getattr(service, name) for service in self._services if hasattr(service, name)]
        if len(found) > 1:
            raise RuntimeError(f"RPC {name} is served by more than one service: {found}")
        return found[0] if found else None

    def _unary(self, name: str, method: Callable[[Any], Awaitable[Any]]) -> Callable[..., Awaitable[None]]:
        replayed = name in REPLAYED
        count = self._stats.rpcs[name]
        faults = self._faults

        async def execute(request: Any, who: Caller, forget_key: bool = False) -> Any:
            if replayed and who.idempotency_key and not forget_key:
                return await self._answers.run((name, who.idempotency_key), lambda: method(request))
            return await method(request)

        async def serve(stream: grpclib.server.Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            began = time.perf_counter()
            try:
                who = self._identify(stream)
                _caller.set(who)
                if faults.armed and (strikes := faults.strikes(self._visit(name, request, who, True))):
                    reply = await fault_rpc.unary(
                        strikes, stream, lambda forget_key: execute(request, who, forget_key)
                    )
                else:
                    reply = await execute(request, who)
            except Exception as error:
                count.errors += 1
                _answer_error(name, error)
            finally:
                count.calls += 1
                count.seconds += time.perf_counter() - began
            if reply is None:  # a fault has broken the stream
                count.errors += 1
            else:
                await stream.send_message(reply)

        return serve

    def _streaming(
        self, name: str, method: Callable[[Any], AsyncIterator[Any]]
    ) -> Callable[..., Awaitable[None]]:
        count = self._stats.rpcs[name]
        faults = self._faults

        async def serve(stream: grpclib.server.Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            count.calls += 1
            try:
                who = self._identify(stream)
                _caller.set(who)
                if faults.armed and (strikes := faults.strikes(self._visit(name, request, who, False))):
                    await fault_rpc.streaming(strikes, stream, method(request))
                    return
                async for reply in method(request):
                    await stream.send_message(reply)
            except Exception as error:
                count.errors += 1
                _answer_error(name, error)

        return serve

    def _unimplemented(self, name: str) -> Callable[..., Awaitable[None]]:
        async def serve(stream: grpclib.server.Stream[Any, Any]) -> None:
            if name not in self._reported:
                self._reported.add(name)
                log.warning("RPC %s is not implemented by the local Modal server", name)
            raise GRPCError(Status.UNIMPLEMENTED, f"{name} is not implemented by the local Modal server")

        return serve

    def _identify(self, stream: grpclib.server.Stream[Any, Any]) -> Caller:
        # grpclib decodes all but binary headers (those whose names end in -bin) to text.
        metadata = cast("Mapping[str, str]", stream.metadata or {})
        task_id = metadata.get(TASK_ID_HEADER)
        if task_id:
            if not self._access.is_container(task_id, metadata.get(CONTAINER_SECRET_HEADER, "")):
                raise RpcError(Status.UNAUTHENTICATED, f"This is not the container {task_id}.")
        elif not self._access.is_token(metadata.get("x-modal-token-secret", "")):
            raise RpcError(Status.UNAUTHENTICATED, WRONG_TOKEN)
        return Caller(
            task_id=task_id or None,
            idempotency_key=metadata.get("x-idempotency-key") or None,
            retry_attempt=int(metadata.get("x-retry-attempt") or 0),
            client_type=int(metadata.get("x-modal-client-type") or 0),
            client_version=metadata.get("x-modal-client-version", ""),
        )


_CLIENT_GONE = (GRPCError, ProtocolError, StreamTerminatedError, ConnectionError)


def _answer_error(name: str, error: Exception) -> NoReturn:
    """Turn an exception of a handler into a status that the SDK doesn't repeat."""
    if isinstance(error, RpcError):
        raise GRPCError(error.status, error.message) from None
    if isinstance(error, _CLIENT_GONE):
        raise error
    log.error("RPC %s failed:\n%s", name, "".join(traceback.format_exception(error)))
    raise GRPCError(
        Status.FAILED_PRECONDITION,
        f"Bug in the local Modal server: {name} failed with {type(error).__name__}: {error} "
        "(its log has the traceback)",
    ) from None


def build(message_type: type[M], **fields: Any) -> M:
    """A message with those of `fields` that the installed SDK's version of it has: newer versions add
    some.
    """
    known = message_type.DESCRIPTOR.fields_by_name
    return message_type(**{name: value for name, value in fields.items() if name in known})


class _AnyMethod:
    """Stands in for a service while grpclib's generated code lists the API."""

    def __getattr__(self, name: str) -> str:
        return name


def _api() -> dict[str, Handler]:
    return ModalClientBase.__mapping__(cast(ModalClientBase, _AnyMethod()))

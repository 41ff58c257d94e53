"""Which questions does the executor put to Modal? Every one of its calls to the SDK, each with a deadline.

All methods are coroutines for the dispatcher's loop. Whatever an unreachable Modal does inside the SDK (its
own attempts take about a minute), a call ends after ``rpc_timeout`` seconds with ``asyncio.TimeoutError``.
That holds for the SDK's ``.aio`` methods only: a blocking one, such as ``Client.from_env()``, holds up the
loop and with it the deadline.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from airflow_provider_modal import names, wire
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.executors.account import Account
from airflow_provider_modal.executors.call_state import CallState, state_of
from airflow_provider_modal.executors.function_options import FunctionOptions
from airflow_provider_modal.executors.starts import Starts, look
from airflow_provider_modal.executors.threads import on_daemon_thread

if TYPE_CHECKING:
    import modal

    from airflow_provider_modal.volume.files import VolumeFiles

T = TypeVar("T")
_Variant: TypeAlias = tuple[str, FunctionOptions]

POLL_SECONDS = 20.0
"""How long one question for events waits on Modal's side."""
POLL_EVENTS = 500
"""How many events one answer may hold."""
MOST_VARIANTS = 256
"""How many functions, and variants of them with options, are kept looked up."""
STARTS_FRESH = 10.0
"""For how many seconds the answer about a function's containers serves everybody who asks."""
CONNECT_PATIENCE = 1.0
"""Seconds that a connection being made at the end may take."""


class Gateway:
    """The Modal objects of one environment, looked up when they are first used.

    :param rpc_timeout: seconds that one call may take.
    :param account: whose token to use.
    """

    def __init__(
        self, resources: names.ResourceNames, rpc_timeout: float, account: Account | None = None
    ) -> None:
        self.resources = resources
        self._rpc_timeout = rpc_timeout
        self._account = account or Account()
        self._functions: dict[_Variant, asyncio.Task[modal.Function[Any, Any, Any]]] = {}
        self._starts: dict[_Variant, tuple[float, asyncio.Task[Starts]]] = {}
        self._handles: tuple[modal.Dict, modal.Queue] | None = None
        self._connecting: asyncio.Task[None] | None = None

    async def spawn(
        self, function: str, message: dict[str, Any], options: FunctionOptions | None = None
    ) -> str:
        """Start a function call and return its id.

        :param options: what of the function is to be otherwise.
        :raises ConfigError: Modal refuses these options.
        :raises Exception: see ``submit_errors``; after a deadline the call may have started all the same.
        """
        from modal import exception

        variant = (function, options or FunctionOptions())
        was_known = variant in self._functions
        try:
            return await self._in_time(lambda: self._spawn(variant, message))
        except exception.NotFoundError:
            # A handle keeps the id that it once looked up, which a new deployment may have replaced.
            self._functions.pop(variant, None)
            if not was_known:
                raise
            return await self._in_time(lambda: self._spawn(variant, message))

    async def _spawn(self, variant: _Variant, message: dict[str, Any]) -> str:
        function = await self._function(variant)
        call = await function.spawn.aio(message)
        return str(call.object_id)

    async def _function(self, variant: _Variant) -> modal.Function[Any, Any, Any]:
        """Return a handle, looked up once for all tasks that want the same.

        Shielded from their deadlines, as connecting is.
        """
        looking = self._functions.pop(variant, None)
        if looking is None or _has_failed(looking):
            looking = asyncio.get_running_loop().create_task(
                _look_up(self.resources, *variant, self._account)
            )
            looking.add_done_callback(_has_failed)
        # Last again: the ones that nobody asked for lately are dropped.
        self._functions[variant] = looking
        while len(self._functions) > MOST_VARIANTS:
            del self._functions[next(iter(self._functions))]
        return await asyncio.shield(looking)

    async def note_call(self, dispatch: str, call_id: str) -> None:
        """Note which call runs a dispatch, for a scheduler that finds only the dispatch in the database."""
        await self._in_time(lambda: self._state().put.aio(names.call_key(dispatch), call_id))

    async def note_cancel(self, dispatch: str, why: str) -> None:
        """Note who has a dispatch's function call cancelled, for the worker that is to end."""
        await self._in_time(lambda: self._state().put.aio(names.cancel_key(dispatch), why))

    async def noted_cancel(self, dispatch: str) -> str | None:
        """Return the reason that ``note_cancel`` left."""
        state, _ = self._objects()
        found = await self._in_time(lambda: state.get.aio(names.cancel_key(dispatch), None))
        return str(found) if found else None

    async def noted_call(self, dispatch: str) -> str | None:
        """Return the id that ``note_call`` left."""
        found = await self._in_time(lambda: self._state().get.aio(names.call_key(dispatch), None))
        return str(found) if found else None

    async def result(self, dispatch: str) -> wire.Completion | None:
        """Return what the worker left about the end of a dispatch.

        :raises WireError: it is of another version.
        """
        message = await self._in_time(lambda: self._state().get.aio(names.result_key(dispatch), None))
        return wire.Completion.from_wire(message) if message else None

    async def claim(self, dispatch: str) -> wire.Claim | None:
        """Return which delivery of a dispatch a container took; None if none did.

        :raises WireError: it is of another version.
        """
        message = await self._in_time(lambda: self._state().get.aio(names.claim_key(dispatch), None))
        return wire.Claim.from_wire(message) if message else None

    async def starts(self, function: str, options: FunctionOptions | None = None) -> Starts:
        """Ask about the containers of a function; many calls may wait for the same."""
        variant = (function, options or FunctionOptions())
        now = time.monotonic()
        self._starts = {
            known: (asked, looking)
            for known, (asked, looking) in self._starts.items()
            if now - asked < STARTS_FRESH and not _has_failed(looking)
        }
        if variant not in self._starts:
            looking = asyncio.get_running_loop().create_task(
                self._in_time(lambda: self._look_at_starts(variant))
            )
            looking.add_done_callback(_has_failed)
            self._starts[variant] = now, looking
        return await asyncio.shield(self._starts[variant][1])

    async def _look_at_starts(self, variant: _Variant) -> Starts:
        function = await self._function(variant)
        base = await self._function((variant[0], FunctionOptions()))
        return await look(function, base)

    async def events(self, partition: str) -> list[Any]:
        """Wait for events of a partition and take them; an empty list when there were none for a while.

        Cancelled, it may lose events: Modal takes them out of the Queue when it answers, also if nobody waits
        for the answer any more. The worker leaves each end in the state Dict as well; see ``result``.
        """
        try:
            taken = await self._in_time(
                lambda: self._objects()[1].get_many.aio(
                    POLL_EVENTS, block=True, timeout=POLL_SECONDS, partition=partition
                ),
                POLL_SECONDS,
            )
        except queue.Empty:
            return []
        return list(taken)

    async def cancel(self, call_id: str, terminate: bool = False) -> None:
        """Cancel a function call; with ``terminate`` its container is ended as well."""
        import modal

        await self._in_time(
            lambda: modal.FunctionCall.from_id(call_id, **self._account.client).cancel.aio(
                terminate_containers=terminate
            )
        )

    async def state_of(self, call_id: str) -> CallState:
        """Ask what became of a function call."""
        return await self._in_time(lambda: state_of(call_id, **self._account.client))

    def files(self) -> VolumeFiles:
        """Return the environment's Volume. Blocks while it connects, so not for the loop's thread."""
        from airflow_provider_modal.volume.files import VolumeFiles

        self._account.connect()
        return VolumeFiles.open(self.resources, place=self._account.place)

    def _state(self) -> modal.Dict:
        return self._objects()[0]

    def _objects(self) -> tuple[modal.Dict, modal.Queue]:
        """Return the handles; only once connected, since they hold the client."""
        import modal

        if self._handles is None:
            self._handles = (
                modal.Dict.from_name(self.resources.state_dict, **self._account.place),
                modal.Queue.from_name(self.resources.events_queue, **self._account.place),
            )
        return self._handles

    async def close(self) -> None:
        """Wait a moment for a connection that is being made: cut short, it would stay open and complain."""
        if self._connecting is not None:
            await asyncio.wait([self._connecting], timeout=CONNECT_PATIENCE)

    async def _in_time(self, call: Callable[[], Awaitable[T]], extra: float = 0.0) -> T:
        async def connected() -> T:
            await self._connect()
            return await call()

        return await asyncio.wait_for(connected(), self._rpc_timeout + extra)

    async def _connect(self) -> None:
        """Wait until the SDK has its connection, which is made once for all callers.

        Shielded from their deadlines: the SDK itself goes on connecting for a caller that is gone, so each of
        them would leave another minute of attempts behind.
        """
        if self._connecting is None or _has_failed(self._connecting):
            self._connecting = asyncio.get_running_loop().create_task(_open_client(self._account))
            # Looked at here, since everybody may be gone by then.
            self._connecting.add_done_callback(_has_failed)
        await asyncio.shield(self._connecting)


async def _open_client(account: Account) -> None:
    import modal

    if not account.ambient:
        await on_daemon_thread(account.connect, "modal-account")
    if not account.client:
        await modal.Client.from_env.aio()


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


async def _look_up(
    resources: names.ResourceNames, name: str, options: FunctionOptions, account: Account
) -> modal.Function[Any, Any, Any]:
    import modal
    from modal import exception

    function: modal.Function[Any, Any, Any] = modal.Function.from_name(resources.app, name, **account.place)
    # By itself: what is not found from here on is not the deployment.
    await function.hydrate.aio()
    if not options:
        return function
    secrets = [modal.Secret.from_name(secret, **account.place) for secret in options.secrets]
    try:
        function = function.with_options(**options.arguments(), secrets=secrets or None)
        await function.hydrate.aio()
    except (exception.NotFoundError, exception.InvalidError, TypeError, ValueError) as error:
        raise ConfigError(
            f"Modal refuses what the task asks for ({options}): {error}; change the task's "
            "executor_config['modal']"
        ) from error
    return function

"""What a struck RPC looks like to the SDK: the effects of `local_modal.faults` on gRPC streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from local_modal.faults import FAIL, LATE, LATENCY, LOSE, STALL, TWICE, Fault, Strike

if TYPE_CHECKING:
    import grpclib.server


async def unary(
    strikes: Iterable[Strike],
    stream: grpclib.server.Stream[Any, Any],
    execute: Callable[[bool], Awaitable[Any]],
) -> Any:
    """Execute an RPC as the faults want it; returns the answer, or None if the client must not get one.

    Args:
        execute: executes the request; True = without regard to its idempotency key.

    Raises:
        GRPCError: the fault's status.
    """
    effects = {strike.effect: strike for strike in strikes}
    way = sum(strike.delay for strike in strikes if strike.effect == LATENCY) / 2
    await before(effects, way)
    if TWICE in effects:
        await execute(False)
        reply = await execute(effects[TWICE].fault.spec.forget_key)
    else:
        reply = await execute(False)
    if LATE in effects:
        await asyncio.sleep(effects[LATE].delay)
    await asyncio.sleep(way)
    if LOSE in effects:
        await _break(stream, effects[LOSE].fault)
        return None
    return reply


async def streaming(
    strikes: Iterable[Strike], stream: grpclib.server.Stream[Any, Any], replies: AsyncIterator[Any]
) -> None:
    """Serve a stream as the faults want it. Delays come before its first message, a loss after it.

    Raises:
        GRPCError: the fault's status.
    """
    effects = {strike.effect: strike for strike in strikes}
    way = sum(strike.delay for strike in strikes if strike.effect == LATENCY)
    await before(effects, way + (effects[LATE].delay if LATE in effects else 0.0))
    async for reply in replies:
        await stream.send_message(reply)
        if LOSE in effects:
            break
    if LOSE in effects:
        await _break(stream, effects[LOSE].fault)


async def before(effects: dict[str, Strike], way: float) -> None:
    """What happens to a request before it is executed: it travels, fails, or gets no further.

    Raises:
        GRPCError: it is not executed.
    """
    await asyncio.sleep(way)
    if FAIL in effects:
        raise GRPCError(effects[FAIL].status, effects[FAIL].message)
    if STALL in effects:
        await effects[STALL].fault.ended.wait()
        raise GRPCError(
            Status.UNAVAILABLE, f"The connection was lost [fault {effects[STALL].fault.fault_id}]"
        )


async def _break(stream: grpclib.server.Stream[Any, Any], fault: Fault) -> None:
    if fault.spec.connection:
        # grpclib has no public way to drop a connection; the stream knows its transport.
        stream._stream._transport.abort()
    else:
        await stream.cancel()

"""All calls and inputs, in memory and (for deployed apps) on disk: what was accepted is not lost with the
server.

What is kept is bounded. Unfinished inputs: by the quotas on what a function may have pending. Finished calls:
by age (the documented life of results), by number and by the bytes of their results; what was awaited and has
been read goes before what was spawned, the longest finished first. Of an expired call only the id is
remembered, so that its caller learns that it came too late and not that there never was such a call; the
number of those is bounded, too.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING

from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal import ids
from local_modal.calls import Call, Input
from local_modal.rpc import RpcError

if TYPE_CHECKING:
    from local_modal.server import Server

CALLS, INPUTS = "calls", "inputs"
EXPIRED_KEPT = 50_000
"""Ids of expired calls; about 10 MB."""
CALL_OVERHEAD, INPUT_OVERHEAD = 700, 2_400
"""Bytes that a finished call and each of its inputs take beside their results, as measured."""
READ_SECONDS = 60.0
"""What was awaited is taken for read when it ended so long ago."""


class Ledger:
    """The calls and inputs by id, their results, and how long they are kept."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.calls: dict[str, Call] = {}
        self.inputs: dict[str, Input] = {}
        self.finished_bytes = 0
        """What the finished calls take."""
        self._awaited: OrderedDict[str, float] = OrderedDict()
        self._spawned: OrderedDict[str, float] = OrderedDict()
        """Finished calls with the time of their end, the longest finished first."""
        self._expired: OrderedDict[str, None] = OrderedDict()

    def load(self) -> list[Input]:
        """Read back what a former server kept; returns the inputs without a result, the oldest first."""
        for call_id, data in self._server.store.load(CALLS).items():
            self.calls[call_id] = Call(**json.loads(data))
        for input_id, data in self._server.store.load(INPUTS).items():
            item = Input.from_bytes(input_id, data, self.calls)
            item.call.inputs.append(item)
            self.inputs[input_id] = item
        ended: list[tuple[float, Call]] = []
        for call in self.calls.values():
            outputs = [(item.output.output_created_at, item) for item in call.inputs if item.output]
            call.inputs.sort(key=lambda item: item.index)
            call.finished = [item for _, item in sorted(outputs, key=lambda pair: pair[0])]
            if not call.unfinished:
                ended.append((max((moment for moment, _ in outputs), default=call.created_at), call))
        for moment, call in sorted(ended, key=lambda pair: pair[0]):
            self._close(call, moment)
        self.expire()
        # What the store gives is in no particular order: an input that is kept again goes to its end.
        calls = sorted(self.calls.values(), key=lambda call: call.created_at)
        return [item for call in calls for item in call.inputs if not item.done]

    def get(self, call_id: str) -> Call:
        """The call of that id.

        Raises:
            RpcError: NOT_FOUND, there is or was none, or it has expired.
        """
        self.expire()
        if call_id not in self.calls:
            raise RpcError(Status.NOT_FOUND, f"Function call {call_id} not found.")
        return self.calls[call_id]

    def has_expired(self, call_id: str) -> bool:
        """Whether there was such a call, whose results aren't kept any more."""
        self.expire()
        return call_id in self._expired

    def of_app(self, app_id: str) -> list[Call]:
        """The calls of an app."""
        return [call for call in self.calls.values() if call.app_id == app_id]

    def open(
        self,
        function_id: str,
        call_type: int,
        invocation_type: int,
        parent_input_id: str = "",
        *,
        durable: bool = True,
    ) -> Call:
        """A new call of a function or variant; a `durable` one of a deployed app outlives the server.

        Raises:
            RpcError: the function doesn't exist or its app is stopped.
        """
        app = self._server.functions.resolve(function_id).app
        call = Call(
            ids.new_id(ids.CALL),
            function_id,
            app.app_id,
            call_type,
            invocation_type,
            self._server.clock.time(),
            parent_input_id,
            durable=durable and app.deployed,
        )
        self.calls[call.call_id] = call
        self._close(call, call.created_at)  # until it has inputs
        if call.durable:
            self._server.store.put(CALLS, call.call_id, call.to_bytes())
        return call

    def add(self, call: Call, index: int, payload: api.FunctionInput) -> Input:
        """A new input of `call`."""
        item = Input(ids.new_id(ids.INPUT), call, index, payload)
        if self._finished(call).pop(call.call_id, None) is not None:
            self.finished_bytes -= call.kept_bytes  # it goes on: a map puts its inputs little by little
        call.inputs.append(item)
        self.inputs[item.input_id] = item
        self.keep(item)
        return item

    def keep(self, item: Input) -> None:
        """Write down how an input stands."""
        if item.call.durable:
            self._server.store.put(INPUTS, item.input_id, item.to_bytes())

    def finish(self, item: Input, output: api.FunctionGetOutputsItem) -> None:
        """Give an input its result and tell everybody who waits for it."""
        call = item.call
        item.output = output
        self._server.stats.input_ended(call.function_id, output.result.status)
        item.forget_arguments(item.payload.args_blob_id)
        self.keep(item)
        call.finished.append(item)
        call.notify()
        if not call.unfinished:
            call.close_data_in()
            self._close(call, output.output_created_at)
            self.expire()

    def expire(self) -> None:
        """Forget the finished calls that are too old, and the oldest of those that are too many or too
        large.
        """
        quotas, now = self._server.quotas, self._server.clock.time()
        for finished, lifetime in (
            (self._awaited, quotas.awaited_result_seconds),
            (self._spawned, quotas.spawned_result_seconds),
        ):
            while finished and (first := next(iter(finished.items())))[1] + lifetime <= now:
                self._forget(first[0])
        while (kept := len(self._awaited) + len(self._spawned)) > quotas.finished_calls or (
            kept > 1 and self.finished_bytes > quotas.finished_bytes
        ):
            self._forget(self._next_to_go(now))

    def _next_to_go(self, now: float) -> str:
        """The finished call that is missed least: what was awaited before what was spawned, but not before it
        could be read. Spawned calls alone may be as many as are kept.
        """
        first = [next(iter(finished.items())) for finished in (self._awaited, self._spawned) if finished]
        if self._awaited and first[0][1] + READ_SECONDS <= now:
            return first[0][0]
        return min(first, key=lambda ended: ended[1])[0]

    def _finished(self, call: Call) -> OrderedDict[str, float]:
        return self._spawned if call.spawned else self._awaited

    def _close(self, call: Call, moment: float) -> None:
        call.kept_bytes = CALL_OVERHEAD + sum(stream.held_bytes for stream in call.streams())
        for item in call.inputs:
            call.kept_bytes += INPUT_OVERHEAD + (item.output.ByteSize() if item.output else 0)
        self.finished_bytes += call.kept_bytes
        self._finished(call)[call.call_id] = moment

    def _forget(self, call_id: str) -> None:
        call = self.calls.pop(call_id)
        del self._finished(call)[call_id]
        self.finished_bytes -= call.kept_bytes
        self._expired[call_id] = None
        if len(self._expired) > EXPIRED_KEPT:
            self._expired.popitem(last=False)
        with self._server.store.transaction():
            if call.durable:
                self._server.store.delete(CALLS, call_id)
            for item in call.inputs:
                self.inputs.pop(item.input_id, None)
                if call.durable:
                    self._server.store.delete(INPUTS, item.input_id)
        for blob_id in call.blob_ids():
            self._server.blobs.discard(blob_id)
        call.let_go()

"""All calls and inputs, in memory and (for deployed apps) on disk: what was accepted is not lost with the
server.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING

from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal import ids
from local_modal.model import Call, Input
from local_modal.rpc import RpcError

if TYPE_CHECKING:
    from local_modal.server import Server

CALLS, INPUTS = "calls", "inputs"
CALLS_KEPT = 20_000
"""Finished calls whose results can be asked for; the oldest go first."""


class Ledger:
    """The calls and inputs by id, their results, and how long they are kept."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.calls: dict[str, Call] = {}
        self.inputs: dict[str, Input] = {}
        self._finished: OrderedDict[str, None] = OrderedDict()
        """Calls without unfinished inputs, the longest finished first."""

    def load(self) -> list[Input]:
        """Read back what a former server kept; returns the inputs without a result, the oldest first."""
        for call_id, data in self._server.store.load(CALLS).items():
            self.calls[call_id] = Call(**json.loads(data))
        for input_id, data in self._server.store.load(INPUTS).items():
            header, _, body = data.partition(b"\n")
            fields = json.loads(header)
            item = Input(input_id, self.calls[fields["call_id"]], fields["index"], api.FunctionInput())
            item.retry_count = fields["retry_count"]
            item.cancel_requested = fields["cancel_requested"]
            if fields["done"]:
                item.output = api.FunctionGetOutputsItem.FromString(body)
            else:
                item.payload = api.FunctionInput.FromString(body)
            item.call.inputs.append(item)
            self.inputs[input_id] = item
        for call in self.calls.values():
            ended = [(item.output.output_created_at, item) for item in call.inputs if item.output]
            call.finished = [item for _, item in sorted(ended, key=lambda pair: pair[0])]
            if not call.unfinished:
                self._finished[call.call_id] = None
        return [item for item in self.inputs.values() if not item.done]

    def get(self, call_id: str) -> Call:
        """The call of that id.

        Raises:
            RpcError: NOT_FOUND.
        """
        if call_id not in self.calls:
            raise RpcError(Status.NOT_FOUND, f"Function call {call_id} not found.")
        return self.calls[call_id]

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
        if call.durable:
            self._server.store.put(CALLS, call.call_id, call.to_bytes())
        return call

    def add(self, call: Call, index: int, payload: api.FunctionInput) -> Input:
        """A new input of `call`."""
        item = Input(ids.new_id(ids.INPUT), call, index, payload)
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
        item.payload = api.FunctionInput()  # arguments may be large; nobody needs them any more
        self.keep(item)
        call.finished.append(item)
        call.notify()
        call.data_out.notify()
        call.data_in.notify()
        if not call.unfinished:
            call.data_in.close()
            self._finished[call.call_id] = None
            while len(self._finished) > CALLS_KEPT:
                self._forget(self._finished.popitem(last=False)[0])

    def _forget(self, call_id: str) -> None:
        call = self.calls.pop(call_id)
        with self._server.store.transaction():
            self._server.store.delete(CALLS, call_id)
            for item in call.inputs:
                self.inputs.pop(item.input_id, None)
                self._server.store.delete(INPUTS, item.input_id)

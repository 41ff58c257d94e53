"""Function calls as clients see them: submitting inputs, waiting for outputs, cancelling."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal.calls import Call, Stream
from local_modal.rpc import RpcError, Service, container_caller

RESPONSE_AHEAD_BYTES = 16 * 2**20
"""How much of a web response may wait here for a client that reads slowly."""
TAKEN_KEPT_BYTES = 8 * 2**20
"""How much of what the container of a web request has taken is kept, should it have been lost on the way."""


class CallService(Service):
    """FunctionMap, FunctionPutInputs, FunctionGetOutputs, FunctionCall*, FunctionGetCallGraph."""

    async def FunctionMap(self, request: api.FunctionMapRequest) -> api.FunctionMapResponse:
        spawned = request.function_call_invocation_type == api.FUNCTION_CALL_INVOCATION_TYPE_ASYNC
        self.server.engine.admit(request.function_id, len(request.pipelined_inputs), spawned=spawned)
        with self.server.store.transaction():
            call = self.server.engine.ledger.open(
                request.function_id,
                request.function_call_type,
                request.function_call_invocation_type,
                request.parent_input_id,
            )
            added = self._add(call, request.pipelined_inputs)
        definition = self.server.functions.resolve(request.function_id).definition
        return api.FunctionMapResponse(
            function_call_id=call.call_id,
            pipelined_inputs=added,
            retry_policy=definition.retry_policy,
            function_call_jwt=call.call_id,
            sync_client_retries_enabled=False,  # the server retries, for every kind of call
            max_inputs_outstanding=self.server.quotas.map_outstanding,
        )

    async def FunctionPutInputs(self, request: api.FunctionPutInputsRequest) -> api.FunctionPutInputsResponse:
        call = self.server.engine.ledger.get(request.function_call_id)
        self.server.engine.admit(call.function_id, len(request.inputs), spawned=call.spawned)
        return api.FunctionPutInputsResponse(inputs=self._add(call, request.inputs))

    def _add(
        self, call: Call, inputs: Iterable[api.FunctionPutInputsItem]
    ) -> list[api.FunctionPutInputsResponseItem]:
        added = self.server.engine.submit(call, ((given.idx, given.input) for given in inputs))
        return [
            api.FunctionPutInputsResponseItem(idx=item.index, input_id=item.input_id, input_jwt=item.input_id)
            for item in added
        ]

    async def FunctionFinishInputs(self, request: api.FunctionFinishInputsRequest) -> Empty:
        call = self.server.engine.ledger.get(request.function_call_id)
        if len(call.inputs) != request.num_inputs:
            raise RpcError(
                Status.FAILED_PRECONDITION,
                f"Function call {call.call_id} has {len(call.inputs)} inputs, not {request.num_inputs}.",
            )
        return Empty()

    async def FunctionGetOutputs(
        self, request: api.FunctionGetOutputsRequest
    ) -> api.FunctionGetOutputsResponse:
        if self.server.engine.ledger.has_expired(request.function_call_id):
            # Neither outputs nor unfinished inputs: to the SDK that is OutputExpiredError, but only once the
            # caller's time is over; it would ask without a pause until then.
            await self.server.clock.sleep(request.timeout)
            return api.FunctionGetOutputsResponse(last_entry_id=request.last_entry_id)
        call = self.server.engine.ledger.get(request.function_call_id)
        deadline = self.server.clock.time() + request.timeout
        while True:
            changed = call.changed
            response = self._outputs(call, request)
            remaining = deadline - self.server.clock.time()
            if response.outputs or not response.num_unfinished_inputs or remaining <= 0:
                return response
            try:
                await asyncio.wait_for(changed.wait(), remaining)
            except asyncio.TimeoutError:
                pass  # the loop looks at the time itself

    def _outputs(self, call: Call, request: api.FunctionGetOutputsRequest) -> api.FunctionGetOutputsResponse:
        """What is finished behind the reader's cursor; reading never removes anything."""
        position = int(request.last_entry_id.partition("-")[0] or 0)
        wanted = range(request.start_idx, request.end_idx + 1) if request.HasField("start_idx") else None
        response = api.FunctionGetOutputsResponse()
        for item in call.finished[position:]:
            position += 1
            if item.output is not None and (wanted is None or item.index in wanted):
                response.idxs.append(item.index)
                response.outputs.append(item.output)
            if request.max_values and len(response.outputs) >= request.max_values:
                break
        response.last_entry_id = f"{position}-0"
        response.num_unfinished_inputs = (
            call.unfinished
            if wanted is None
            else sum(1 for item in call.inputs if not item.done and item.index in wanted)
        )
        return response

    async def FunctionCallCancel(self, request: api.FunctionCallCancelRequest) -> Empty:
        call = self.server.engine.ledger.get(request.function_call_id)
        self.server.engine.cancel(call, request.terminate_containers)
        return Empty()

    async def FunctionCallFromId(
        self, request: api.FunctionCallFromIdRequest
    ) -> api.FunctionCallFromIdResponse:
        call = self.server.engine.ledger.get(request.function_call_id)
        return api.FunctionCallFromIdResponse(
            function_call_id=call.call_id,
            num_inputs=len(call.inputs),
            metadata=api.FunctionCallHandleMetadata(app_id=call.app_id, function_id=call.function_id),
        )

    async def FunctionCallList(self, request: api.FunctionCallListRequest) -> api.FunctionCallListResponse:
        return api.FunctionCallListResponse(
            function_calls=[
                self._info(call)
                for call in self.server.engine.ledger.calls.values()
                if call.function_id == request.function_id
            ]
        )

    async def FunctionCallGetInfo(
        self, request: api.FunctionCallGetInfoRequest
    ) -> api.FunctionCallGetInfoResponse:
        return api.FunctionCallGetInfoResponse(
            info=self._info(self.server.engine.ledger.get(request.function_call_id))
        )

    @staticmethod
    def _info(call: Call) -> api.FunctionCallInfo:
        info = api.FunctionCallInfo(
            function_call_id=call.call_id, created_at=call.created_at, total_inputs=len(call.inputs)
        )
        categories = {
            api.GenericResult.GENERIC_STATUS_SUCCESS: info.succeeded_inputs,
            api.GenericResult.GENERIC_STATUS_TIMEOUT: info.timeout_inputs,
            api.GenericResult.GENERIC_STATUS_TERMINATED: info.cancelled_inputs,
        }
        for item in call.inputs:
            if item.output is None:
                info.pending_inputs.total += 1
            else:
                categories.get(item.output.result.status, info.failed_inputs).total += 1
        return info

    async def FunctionGetCallGraph(
        self, request: api.FunctionGetCallGraphRequest
    ) -> api.FunctionGetCallGraphResponse:
        ledger = self.server.engine.ledger
        response = api.FunctionGetCallGraphResponse()
        pending = [ledger.get(request.function_call_id)]
        # From the root of the tree that the call belongs to.
        while (parent := ledger.inputs.get(pending[0].parent_input_id)) is not None:
            pending[0] = parent.call
        while pending:
            call = pending.pop()
            definition = self.server.functions.resolve(call.function_id).definition
            response.function_calls.add(
                function_call_id=call.call_id,
                parent_input_id=call.parent_input_id,
                function_name=definition.function_name,
                module_name=definition.module_name,
            )
            for item in call.inputs:
                response.inputs.add(
                    input_id=item.input_id,
                    function_call_id=call.call_id,
                    task_id=item.output.task_id if item.output else next(iter(item.running_on), ""),
                    status=item.output.result.status if item.output else 0,
                )
                pending += [
                    child for child in ledger.calls.values() if child.parent_input_id == item.input_id
                ]
        return response

    # -- generators

    async def FunctionCallPutDataOut(self, request: api.FunctionCallPutDataRequest) -> Empty:
        call = self.server.engine.ledger.get(request.function_call_id)
        if call.web and not self.server.engine.outcomes.answers(call, container_caller()):
            return Empty()  # another attempt has taken its place
        call.data_out.append(request.data_chunks)
        if call.web:
            # The container waits for this answer before it sends more.
            await call.data_out.room(RESPONSE_AHEAD_BYTES)
        return Empty()

    async def FunctionCallGetDataOut(
        self, request: api.FunctionCallGetDataRequest
    ) -> AsyncIterator[api.DataChunk]:
        call = self.server.engine.ledger.get(request.function_call_id)
        async for chunk in self._read(call, call.data_out, request.last_index):
            yield chunk

    async def FunctionCallGetDataIn(
        self, request: api.FunctionCallGetDataRequest
    ) -> AsyncIterator[api.DataChunk]:
        call = self.server.engine.ledger.get(request.function_call_id)
        if request.last_index < call.data_in.released:
            raise RpcError(Status.DATA_LOSS, f"The messages of {call.call_id} are not kept so long.")
        async for chunk in self._read(call, call.data_in, request.last_index):
            yield chunk
            if call.answering:
                # It can't start again: nobody but a container whose stream broke off will ask for it again.
                call.data_in.trim(chunk.index, TAKEN_KEPT_BYTES)

    @staticmethod
    async def _read(call: Call, stream: Stream, last_index: int) -> AsyncIterator[api.DataChunk]:
        while True:
            changed = stream.changed
            for chunk in stream.after(last_index):
                last_index = chunk.index
                yield chunk
            if not call.unfinished:
                return
            await changed.wait()

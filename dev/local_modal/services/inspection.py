"""What the stock command line asks about: who am I, how does a function scale, what has it run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2 as api

from local_modal.calls import Input
from local_modal.rpc import Service, build

WORKSPACE, USER = "local", "local"
"""There are no accounts: whoever has the token is the one user of the one workspace."""


class InspectionService(Service):
    """TokenInfoGet, WorkspaceNameLookup, FunctionGetById, FunctionGetSchedulingParams, FunctionListVariants,
    FunctionCallFetch and FunctionCallCount.
    """

    async def TokenInfoGet(self, request: api.TokenInfoGetRequest) -> api.TokenInfoGetResponse:
        return build(
            api.TokenInfoGetResponse,
            token_id="ak-local",
            workspace_id="ac-local",
            workspace_name=WORKSPACE,
            user_identity=api.UserIdentity(user_id="us-local", username=USER),
        )

    async def WorkspaceNameLookup(self, request: Empty) -> api.WorkspaceNameLookupResponse:
        return api.WorkspaceNameLookupResponse(workspace_name=WORKSPACE, username=USER)

    async def FunctionGetById(self, request: api.FunctionGetByIdRequest) -> api.FunctionGetByIdResponse:
        record = self.server.functions.resolve(request.function_id).record
        return api.FunctionGetByIdResponse(function=record.data(), handle_metadata=record.handle)

    async def FunctionGetSchedulingParams(
        self, request: api.FunctionGetSchedulingParamsRequest
    ) -> api.FunctionGetSchedulingParamsResponse:
        resolved = self.server.functions.resolve(request.function_id)
        settings = api.AutoscalerSettings()
        settings.MergeFrom(resolved.definition.autoscaler_settings)
        if resolved.autoscaler is not None:
            settings.MergeFrom(resolved.autoscaler)
        return api.FunctionGetSchedulingParamsResponse(
            autoscaler_configuration=api.AutoscalerConfiguration(settings=settings)
        )

    async def FunctionListVariants(
        self, request: api.FunctionListVariantsRequest
    ) -> api.FunctionListVariantsResponse:
        response = api.FunctionListVariantsResponse()
        for variant_id, bound in self.server.functions.variants_of(request.function_id).items():
            response.infos.add(
                function_id=variant_id,
                serialized_params=bound.serialized_params,
                function_options=bound.function_options if bound.HasField("function_options") else None,
            )
        return response

    async def FunctionCallFetch(self, request: api.FunctionCallFetchRequest) -> api.FunctionCallFetchResponse:
        inputs = list(self._inputs(request.function_id, request.all_variants))
        if request.HasField("range"):
            since, until = _seconds(request.range.since), _seconds(request.range.until)
            inputs = [item for item in inputs if since <= item.call.created_at < until]
            inputs = inputs[: request.range.limit or len(inputs)]
        else:
            inputs = inputs[-request.tail.count :]
        return api.FunctionCallFetchResponse(function_call_inputs=[self._info(item) for item in inputs])

    async def FunctionCallCount(self, request: api.FunctionCallCountRequest) -> api.FunctionCallCountResponse:
        since, until, width = _seconds(request.since), _seconds(request.until), request.bucket_secs or 60
        counts = Counter(
            int((item.call.created_at - since) // width)
            for item in self._inputs(request.function_id, request.all_variants)
            if since <= item.call.created_at < until
        )
        response = api.FunctionCallCountResponse()
        for index, count in sorted(counts.items()):
            response.buckets.add(bucket_start_at=_timestamp(since + index * width), count=count)
        return response

    def _inputs(self, function_id: str, all_variants: bool) -> Iterator[Input]:
        """The inputs of a function that are still known, in the order of their calls."""
        functions = self.server.functions
        for call in self.server.engine.ledger.calls.values():
            if function_id == (functions.base_of(call.function_id) if all_variants else call.function_id):
                yield from call.inputs

    def _info(self, item: Input) -> api.FunctionCallInputInfo:
        info = api.FunctionCallInputInfo(
            function_call_id=item.call.call_id, enqueued_at=_timestamp(item.call.created_at)
        )
        if item.output is not None:
            started = item.output.input_started_at
            info.status = _status(item.output.result.status)
            if item.output.task_id:
                info.container_id = item.output.task_id
            if started:
                info.started_at.CopyFrom(_timestamp(started))
                info.execution_time_seconds = item.output.output_created_at - started
        elif item.running_on:
            info.status = api.FUNCTION_CALL_INPUT_STATUS_RUNNING
            info.container_id = sorted(item.running_on)[0]
        else:
            info.status = api.FUNCTION_CALL_INPUT_STATUS_PENDING
        return info


def _status(result: int) -> api.FunctionCallInputStatus.ValueType:
    """The two enumerations call the same things the same."""
    name = api.GenericResult.GenericStatus.Name(result)
    try:
        return api.FunctionCallInputStatus.Value(name.replace("GENERIC_", "FUNCTION_CALL_INPUT_"))
    except ValueError:
        return api.FUNCTION_CALL_INPUT_STATUS_INTERNAL_FAILURE


def _seconds(moment: Timestamp) -> float:
    return moment.ToNanoseconds() / 1e9


def _timestamp(seconds: float) -> Timestamp:
    moment = Timestamp()
    moment.FromNanoseconds(int(seconds * 1e9))
    return moment

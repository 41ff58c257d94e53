"""How a function's containers scale: settings changed after its deployment, and what it has at the moment."""

from __future__ import annotations

from modal_proto import api_pb2 as api

from local_modal.rpc import Service, build


class ScalingService(Service):
    """FunctionUpdateSchedulingParams, FunctionGetCurrentStats."""

    async def FunctionUpdateSchedulingParams(
        self, request: api.FunctionUpdateSchedulingParamsRequest
    ) -> api.FunctionUpdateSchedulingParamsResponse:
        functions = self.server.functions
        resolved = functions.resolve(request.function_id)
        settings = api.AutoscalerSettings.FromString(
            resolved.definition.autoscaler_settings.SerializeToString()
        )
        if resolved.autoscaler is not None:
            settings.MergeFrom(resolved.autoscaler)
        settings.MergeFrom(request.settings)
        resolved.record.autoscaler[resolved.function_id] = settings
        if resolved.app.deployed:
            functions.keep(resolved.record)
        functions.ensure_pool(request.function_id)
        self.server.engine.kick()
        return build(api.FunctionUpdateSchedulingParamsResponse, current_settings=settings)

    async def FunctionGetCurrentStats(self, request: api.FunctionGetCurrentStatsRequest) -> api.FunctionStats:
        pool = self.server.engine.scheduler.pools.get(self.server.functions.ensure_pool(request.function_id))
        if pool is None:
            return api.FunctionStats()
        return api.FunctionStats(
            backlog=len(pool.queue),
            num_total_tasks=len(pool.slots),
            num_running_inputs=sum(len(slot.running) for slot in pool.slots.values()),
        )

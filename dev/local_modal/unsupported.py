"""Which definitions of functions are refused: what would silently mean something else here."""

from __future__ import annotations

from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal import cron
from local_modal.rpc import RpcError

GPU_TYPES = (
    *("T4", "L4", "A10", "A10G", "L40S", "A100", "A100-40GB", "A100-80GB", "RTX-PRO-6000"),
    *("H100", "H100!", "H200", "B200", "B200+", "ANY"),
)
"""What https://modal.com/docs/guide/gpu lists, and A10G and ANY, which were there before. That other names
are refused when a function or variant is made, and in which words, is an assumption."""


def refuse_unsupported(definition: api.Function) -> None:
    """Check a definition when it is deployed.

    Raises:
        RpcError: INVALID_ARGUMENT, it asks for something that this server doesn't have, or for nonsense.
    """
    schedule = definition.schedule
    refused = {
        "cloud_bucket_mounts": bool(definition.cloud_bucket_mounts),
        "network file systems": bool(definition.shared_volume_mounts),
        "clustered functions": definition._experimental_group_size > 1,
        "enable_memory_snapshot": definition.checkpointing_enabled,
        "block_network": definition.block_network,
        "@app.server": definition.is_server,
    }
    for what, used in refused.items():
        if used:
            raise RpcError(
                Status.INVALID_ARGUMENT,
                f"{definition.function_name}: {what} is not supported by the local Modal server.",
            )
    gpu_type = definition.resources.gpu_config.gpu_type
    if gpu_type and gpu_type not in GPU_TYPES:
        raise RpcError(
            Status.INVALID_ARGUMENT, f"unknown GPU type {gpu_type!r}; known: {', '.join(GPU_TYPES)}"
        )
    try:
        cron.check(schedule)
    except cron.ScheduleError as error:
        raise RpcError(Status.INVALID_ARGUMENT, f"{definition.function_name}: {error}") from None

"""What `with_options` changes in a function's definition, and how a definition says that its containers
scale.
"""

from __future__ import annotations

from modal_proto import api_pb2 as api

from local_modal.scheduler import PoolSettings
from local_modal.web_server import is_web_server

DEFAULT_TIMEOUT = 300
DEFAULT_SCALEDOWN = 60


def apply_options(base: api.Function, options: api.FunctionOptions) -> api.Function:
    """`base` with the options of a FunctionBindParams request in force.

    Secrets and volumes are replaced as a whole when the SDK says so (`env=` and `secrets=` in with_options
    drop those of the decorator), resources are merged field by field.
    """
    definition = api.Function.FromString(base.SerializeToString())
    if options.replace_secret_ids:
        del definition.secret_ids[:]
    definition.secret_ids.extend(options.secret_ids)
    definition.mount_ids.extend(options.mount_ids)
    if options.replace_volume_mounts:
        del definition.volume_mounts[:]
    definition.volume_mounts.extend(options.volume_mounts)
    if options.replace_cloud_bucket_mounts:
        del definition.cloud_bucket_mounts[:]
    definition.cloud_bucket_mounts.extend(options.cloud_bucket_mounts)
    if options.HasField("resources"):
        definition.resources.MergeFrom(options.resources)
    if options.HasField("retry_policy"):
        definition.retry_policy.CopyFrom(options.retry_policy)
    if options.HasField("scheduler_placement"):
        definition.scheduler_placement.CopyFrom(options.scheduler_placement)
    if options.HasField("cloud_provider_str"):
        definition.cloud_provider_str = options.cloud_provider_str
    settings = definition.autoscaler_settings
    if options.HasField("timeout_secs"):
        definition.timeout_secs = options.timeout_secs
    if options.HasField("task_idle_timeout_secs"):
        definition.task_idle_timeout_secs = settings.scaledown_window = options.task_idle_timeout_secs
    if options.HasField("concurrency_limit"):
        definition.concurrency_limit = settings.max_containers = options.concurrency_limit
    if options.HasField("warm_pool_size"):
        definition.warm_pool_size = settings.min_containers = options.warm_pool_size
    if options.HasField("buffer_containers"):
        definition._experimental_buffer_containers = settings.buffer_containers = options.buffer_containers
    if options.HasField("target_concurrent_inputs"):
        definition.target_concurrent_inputs = options.target_concurrent_inputs
    if options.HasField("max_concurrent_inputs"):
        definition.max_concurrent_inputs = options.max_concurrent_inputs
    if options.HasField("batch_max_size"):
        definition.batch_max_size = options.batch_max_size
    if options.HasField("batch_linger_ms"):
        definition.batch_linger_ms = options.batch_linger_ms
    return definition


def pool_settings(definition: api.Function, override: api.AutoscalerSettings | None) -> PoolSettings:
    """How containers of `definition` scale; `override` is what was changed after the deployment."""
    settings = api.AutoscalerSettings.FromString(definition.autoscaler_settings.SerializeToString())
    if override is not None:
        settings.MergeFrom(override)

    def chosen(name: str, otherwise: int) -> int:
        """A setting that is there counts, also if it is 0."""
        return int(getattr(settings, name)) if settings.HasField(name) else otherwise

    timeout = definition.timeout_secs or DEFAULT_TIMEOUT
    fixed_port = is_web_server(definition)
    return PoolSettings(
        max_containers=1 if fixed_port else chosen("max_containers", definition.concurrency_limit),
        min_containers=chosen("min_containers", definition.warm_pool_size),
        buffer_containers=chosen("buffer_containers", definition._experimental_buffer_containers),
        scaledown_window=float(
            chosen("scaledown_window", definition.task_idle_timeout_secs) or DEFAULT_SCALEDOWN
        ),
        concurrency=definition.target_concurrent_inputs or definition.max_concurrent_inputs or 1,
        batch_size=definition.batch_max_size,
        batch_linger=definition.batch_linger_ms / 1000,
        single_use=definition.single_use_containers or definition.max_inputs == 1,
        timeout=float(timeout),
        startup_timeout=float(definition.startup_timeout_secs or timeout),
        exclusive=fixed_port,
    )


class Derived:
    """What follows from the definitions of functions, kept until they change: every call needs it, and
    copying messages takes longer than all the rest that the server does for a call.
    """

    def __init__(self) -> None:
        self._variants: dict[str, tuple[api.Function, api.Function]] = {}
        self._settings: dict[str, tuple[api.Function, api.AutoscalerSettings | None, PoolSettings]] = {}

    def variant(self, variant_id: str, base: api.Function, options: api.FunctionOptions) -> api.Function:
        """`base` with `options`, which are always the same for this variant; not to be changed."""
        kept = self._variants.get(variant_id)
        if kept is None or kept[0] is not base:
            self._variants[variant_id] = kept = (base, apply_options(base, options))
        return kept[1]

    def settings(
        self, function_id: str, definition: api.Function, override: api.AutoscalerSettings | None
    ) -> PoolSettings:
        """How the containers of this function or variant scale."""
        kept = self._settings.get(function_id)
        if kept is None or kept[0] is not definition or kept[1] is not override:
            kept = (definition, override, pool_settings(definition, override))
            self._settings[function_id] = kept
        return kept[2]

    def forget(self, function_id: str) -> None:
        """This function or variant is gone."""
        self._variants.pop(function_id, None)
        self._settings.pop(function_id, None)

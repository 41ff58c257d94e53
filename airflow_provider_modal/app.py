"""Which functions does an environment consist of, and with what resources?

``build_app`` describes them for Modal, ``describe`` for the deployment manifest; what they do is in
``container.entry``. Imports modal, never Airflow.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Collection
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import __version__, airflow_settings, deployment, names
from airflow_provider_modal.config import RUN_MARGIN_SECONDS, EnvironmentConfig
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.triggerer import MARGIN_SECONDS, SLICE_SECONDS
from airflow_provider_modal.version_compat import airflow_version
from airflow_provider_modal.wire import WIRE_VERSION

if TYPE_CHECKING:
    import modal

STARTUP_TIMEOUT = 600
"""Seconds for pulling the image and starting; separate from the time that an input may take."""
TICK_SIZE = (0.125, 128)
SCHEDULER_SIZE = (1.0, 1024)
"""Cores and MiB."""
TICK_TIMEOUT = 60
TRIGGERS_TIMEOUT = math.ceil(SLICE_SECONDS) + MARGIN_SECONDS
TRIGGERS_SCALEDOWN_WINDOW = 30
CONTROL_TIMEOUT = 900
"""Seconds for one operation of the command line; a migration of a large database is the longest."""


def build_app(config: EnvironmentConfig, env: str, *, image: modal.Image | None = None) -> modal.App:
    """Return the App of an environment, ready to be deployed. Its Secrets and Volume must exist by then.

    :param image: what the containers run in; built from ``config`` by default.
    :raises ConfigError: a name is not allowed, or Modal refuses one of the settings.
    """
    import modal

    from airflow_provider_modal.container import entry
    from airflow_provider_modal.image import build_image

    resources = names.ResourceNames(env)
    app = modal.App(resources.app, include_source=False)
    volumes = {
        airflow_settings.DEFAULT_VOLUME_PATH: modal.Volume.from_name(resources.volume, version=2),
    }
    built_image = image if image is not None else build_image(config)
    # Modal skips the deployment of an App in which nothing changed (modal.runner: "no changes detected"), and
    # containers that are warm go on with the values that a Secret had when they started.
    deployment_id = {airflow_settings.DEPLOYMENT: airflow_settings.new_deployment()}

    def register(
        name: str, function: Callable[..., Any], role: str, *, secrets: Collection[str], **options: Any
    ) -> None:
        try:
            app.function(
                name=name,
                image=built_image,
                include_source=False,
                env={**airflow_settings.function_environment(config, env, role), **deployment_id},
                secrets=[modal.Secret.from_name(secret) for secret in secrets],
                startup_timeout=STARTUP_TIMEOUT,
                **options,
            )(function)
        except modal.exception.InvalidError as error:
            raise ConfigError(f"Modal refuses the settings of function {name}: {error}") from error

    register(
        names.SCHEDULER_TICK,
        entry.scheduler_tick,
        "tick",
        secrets=[resources.secrets],
        schedule=modal.Period(seconds=config.scheduler.interval_seconds),
        cpu=TICK_SIZE[0],
        memory=TICK_SIZE[1],
        scaledown_window=2,
        timeout=TICK_TIMEOUT,
    )
    register(
        names.SCHEDULER_RUN,
        entry.scheduler_run,
        "scheduler",
        secrets=deployment.base_secrets(config, resources),
        volumes=volumes,
        cpu=SCHEDULER_SIZE[0],
        memory=SCHEDULER_SIZE[1],
        # One container makes Modal's input queue the list of wishes (see wakeup).
        max_containers=1,
        scaledown_window=scheduler_scaledown_window(config.scheduler.interval_seconds),
        timeout=math.ceil(config.scheduler.max_run_seconds) + RUN_MARGIN_SECONDS,
    )
    register(
        names.RUN_TRIGGERS,
        entry.run_triggers,
        "triggers",
        secrets=deployment.base_secrets(config, resources),
        volumes=volumes,
        # It mostly waits, for as long as anything is deferred; what bursts is not bound by a reservation.
        cpu=0.125,
        memory=512,
        max_containers=1,
        scaledown_window=TRIGGERS_SCALEDOWN_WINDOW,
        timeout=TRIGGERS_TIMEOUT,
    )
    register(
        names.CONTROL,
        entry.control,
        "control",
        secrets=[resources.secrets],
        volumes=volumes,
        cpu=0.5,
        memory=512,
        scaledown_window=60,
        timeout=CONTROL_TIMEOUT,
    )
    deployed = deployment.worker_profiles(config, resources)
    for name, profile in config.workers.items():
        register(
            deployed[name].function,
            entry.execute_task,
            "worker",
            secrets=deployed[name].secrets,
            volumes=volumes,
            cpu=profile.cpu,
            # A single number would be a request only: the container could grow until its host is full.
            memory=(profile.memory, profile.memory),
            gpu=profile.gpu,
            min_containers=profile.min_containers or None,
            max_containers=profile.max_containers,
            scaledown_window=profile.scaledown_window,
            nonpreemptible=profile.nonpreemptible,
            timeout=deployed[name].timeout,
        )
    return app


def describe(config: EnvironmentConfig, env: str, *, image: str | None = None) -> deployment.Manifest:
    """Return the manifest of an App that was built and deployed here, now.

    :param image: id of the image that it runs in.
    """
    resources = names.ResourceNames(env)
    return deployment.Manifest(
        env=env,
        package=__version__,
        airflow=airflow_version(),
        python=platform.python_version(),
        modal=version("modal"),
        wire=WIRE_VERSION,
        volume_path=airflow_settings.DEFAULT_VOLUME_PATH,
        profiles=deployment.worker_profiles(config, resources),
        # As it will be read back: lists where the configuration has tuples.
        settings=json.loads(json.dumps(config.to_settings())),
        airflow_options=tuple(sorted(config.airflow)),
        image=image,
        deployed_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def scheduler_scaledown_window(interval: int) -> int:
    """Return how many seconds the scheduler's container stays after a run.

    Long enough that the ends of short tasks find it warm, and half of the schedule's interval at most, so
    that an environment in which nothing happens has no container between two runs of the schedule. A schedule
    that is faster than a cold start keeps it anyway.

    :param interval: seconds between two runs of the schedule.
    """
    return min(max(interval // 2, 10), 120)

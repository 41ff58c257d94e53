"""What would ``create`` do? Looked up, and compared with what is deployed, without changing anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import __version__, deployment, environment_secrets, names
from airflow_provider_modal.app import build_app
from airflow_provider_modal.db.url import host_of
from airflow_provider_modal.errors import NotFoundError
from airflow_provider_modal.image import base_tag
from airflow_provider_modal.modal_errors import translated
from airflow_provider_modal.modal_objects import find_app, known
from airflow_provider_modal.version_compat import airflow_version
from airflow_provider_modal.volume.files import VolumeFiles

if TYPE_CHECKING:
    from airflow_provider_modal.config import EnvironmentConfig


@dataclass
class Plan:
    """What ``create`` would do.

    :param steps: ``step``, ``action`` (``create``, ``update`` or ``keep``) and ``detail``, in their order.
    :param changes: what is configured or installed otherwise than deployed: ``what``, ``deployed``, ``now``.
    """

    env: str
    steps: list[dict[str, str]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)

    def add(self, step: str, action: str, detail: str) -> None:
        """Add a step."""
        self.steps.append({"step": step, "action": action, "detail": detail})


def plan(config: EnvironmentConfig, env: str) -> Plan:
    """Return what ``create`` would do.

    :raises ConfigError: it would refuse this configuration.
    :raises UnreachableError: Modal does not answer.
    """
    import modal

    resources = names.ResourceNames(env)
    environment_secrets.check_fernet_key(config)
    build_app(config, env)
    environment_secrets.require_named(config, resources)
    with translated(f"look up environment {env}"):
        app = find_app(resources.app) is not None
        volume = known(modal.Volume, resources.volume)
        state = known(modal.Dict, resources.state_dict) and known(modal.Queue, resources.events_queue)
        secret = known(modal.Secret, resources.secrets)
    planned = Plan(env)
    planned.add(
        "image", "update" if app else "create", f"{config.image.base or base_tag()}, unless unchanged"
    )
    planned.add("volume", "keep" if volume else "create", resources.volume)
    planned.add("state", "keep" if state else "create", f"{resources.state_dict}, {resources.events_queue}")
    key = "with the Fernet key of the configuration" if config.fernet_key else "with a new Fernet key"
    told = "database URL and options; keys are kept" if secret else key
    planned.add("secrets", "update" if secret else "create", told)
    planned.add("app", "update" if app else "create", f"{resources.app}: {_functions(config)}")
    planned.add("database", "update", f"{host_of(config.connection_string)}: marked as the environment's own")
    planned.add("schema", "update", f"migrated to Airflow {airflow_version()}, unless it is there")
    if volume:
        planned.changes = changes(_deployed(resources), config)
    return planned


def changes(deployed: deployment.Manifest | None, config: EnvironmentConfig) -> list[dict[str, Any]]:
    """Compare a configuration, and what is installed here, with what is deployed; the secret part is unknown.

    :param deployed: None if nothing is.
    """
    if deployed is None:
        return []
    before = {"package": deployed.package, "airflow": deployed.airflow, **_flat(deployed.settings)}
    # As it was written: lists where the configuration has tuples.
    settings = json.loads(json.dumps(config.to_settings()))
    after = {"package": __version__, "airflow": airflow_version(), **_flat(settings)}
    found = [
        {"what": what, "deployed": before.get(what), "now": after.get(what)}
        for what in dict.fromkeys([*before, *after])
        if before.get(what) != after.get(what)
    ]
    options = set(deployed.airflow_options) ^ set(config.airflow)
    for option in sorted(options):
        was = option in deployed.airflow_options
        found.append(
            {
                "what": f"airflow.{option}",
                "deployed": "set" if was else None,
                "now": None if was else "set",
            }
        )
    return found


def _deployed(resources: names.ResourceNames) -> deployment.Manifest | None:
    try:
        return deployment.read(VolumeFiles.open(resources))
    except NotFoundError:
        return None


def _functions(config: EnvironmentConfig) -> str:
    profiles = ", ".join(
        f"{name} (cpu {profile.cpu:g}, {profile.memory} MiB{f', {profile.gpu}' if profile.gpu else ''})"
        for name, profile in config.workers.items()
    )
    return f"a tick every {config.scheduler.interval_seconds} s; workers {profiles}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by path: ``workers.gpu.memory``."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat

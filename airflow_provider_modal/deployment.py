"""What is deployed in an environment?

``create`` writes the manifest last, so an environment that has one is complete. Executor, worker and command
line compare themselves with it. It holds no secret values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import names
from airflow_provider_modal.config import CALL_MARGIN_SECONDS, EnvironmentConfig, WorkerProfile
from airflow_provider_modal.errors import ModalflowError, NotFoundError

if TYPE_CHECKING:
    from airflow_provider_modal.volume.files import VolumeFiles

FORMAT = 1


@dataclass(frozen=True)
class DeployedProfile:
    """A worker profile as it was deployed.

    :param secrets: names of the function's Secrets, in their order. Options per call replace a function's
        Secrets, so these have to be named again with them.
    :param timeout: Modal's limit for a call, in seconds.
    """

    function: str
    secrets: tuple[str, ...]
    timeout: int


def worker_profiles(config: EnvironmentConfig, resources: names.ResourceNames) -> dict[str, DeployedProfile]:
    """Return what a configuration's worker profiles are deployed as."""
    return {
        name: DeployedProfile(
            function=names.task_function(name),
            secrets=tuple(base_secrets(config, resources, profile)),
            timeout=call_timeout(config.task_timeout(name)),
        )
        for name, profile in config.workers.items()
    }


def base_secrets(
    config: EnvironmentConfig, resources: names.ResourceNames, profile: WorkerProfile | None = None
) -> list[str]:
    """Return the names of a function's Secrets: the image's, a worker profile's, and last the environment's
    own, whose values win."""
    return [*config.image.secrets, *(profile.secrets if profile else ()), resources.secrets]


def call_timeout(task_timeout: float) -> int:
    """Return Modal's limit for a task's call, in seconds: later than the worker's own, which ends it well.

    Modal counts from the input's delivery, so the warm-up of a new container is part of it.
    """
    return math.ceil(task_timeout) + CALL_MARGIN_SECONDS


@dataclass(frozen=True)
class Manifest:
    """What ``create`` deployed.

    :param package: version of this package; ``airflow``, ``python``, ``modal`` and ``wire`` likewise.
    :param image: id of the image that the functions run in.
    :param settings: the configuration without its secret parts (``EnvironmentConfig.to_settings``).
    :param airflow_options: names of the options in the configuration's ``airflow`` section.
    :param deployed_at: ISO 8601, UTC.
    """

    env: str
    package: str
    airflow: str
    python: str
    modal: str
    wire: int
    volume_path: str
    profiles: Mapping[str, DeployedProfile]
    settings: Mapping[str, Any]
    airflow_options: tuple[str, ...]
    deployed_at: str
    image: str | None = None

    def to_json(self) -> str:
        """Return the file's content."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read the file's content; fields of a later release are ignored.

        :raises ValueError: it is not a manifest, or of another format.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError("not a deployment manifest of this format")
        try:
            profiles = {
                name: DeployedProfile(profile["function"], tuple(profile["secrets"]), profile["timeout"])
                for name, profile in data["profiles"].items()
            }
            values = {f.name: data[f.name] for f in fields(cls) if f.name in data or f.default is MISSING}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"incomplete deployment manifest ({type(error).__name__}: {error})") from None
        return cls(**{**values, "profiles": profiles, "airflow_options": tuple(values["airflow_options"])})


def write(files: VolumeFiles, manifest: Manifest) -> None:
    """Put the manifest onto the environment's Volume."""
    files.write(names.MANIFEST_PATH, manifest.to_json().encode())


def read(files: VolumeFiles) -> Manifest:
    """Return what is deployed.

    :raises NotFoundError: no ``create`` has come to its end.
    :raises ModalflowError: the manifest is of another release or damaged.
    """
    try:
        return Manifest.from_json(files.read(names.MANIFEST_PATH))
    except FileNotFoundError:
        raise NotFoundError(
            "the environment has no deployment manifest: its creation did not come to its end; run modalflow "
            "create again"
        ) from None
    except ValueError as error:
        raise ModalflowError(
            f"{names.MANIFEST_PATH} on the Volume: {error}; run modalflow create again"
        ) from None

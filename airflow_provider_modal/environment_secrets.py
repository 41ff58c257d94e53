"""Which Secrets does an environment have, what is in them, and which of the user's does it need?

The Fernet key is made once and never replaced: connections and variables in the database can't be read
without it, and Modal does not give it back.
"""

from __future__ import annotations

import base64
import binascii
import logging
import secrets
from collections.abc import Callable

from airflow_provider_modal import airflow_settings, deployment, names
from airflow_provider_modal.config import EnvironmentConfig
from airflow_provider_modal.errors import ConfigError, ModalflowError, UnreachableError
from airflow_provider_modal.modal_errors import translated
from airflow_provider_modal.modal_objects import known
from airflow_provider_modal.steps import Status
from airflow_provider_modal.volume.files import VolumeFiles

log = logging.getLogger(__name__)


def check_fernet_key(config: EnvironmentConfig) -> None:
    """Refuse a Fernet key of the configuration that is none.

    :raises ConfigError: it is none.
    """
    if config.fernet_key is None:
        return
    # Airflow takes several keys, separated by commas, while they are rotated.
    for part in config.fernet_key.split(","):
        try:
            length = len(base64.urlsafe_b64decode(part.strip()))
        except (binascii.Error, ValueError):
            length = 0
        if length != 32:
            raise ConfigError(
                "keys.fernet_key is not a Fernet key (32 bytes, URL-safe base64); leave it out to get "
                "one, or make one: openssl rand -base64 32 | tr '+/' '-_'"
            )


def require_named(config: EnvironmentConfig, resources: names.ResourceNames) -> None:
    """Check that the Secrets that the user named exist: Modal would tell only when the App is deployed.

    :raises ConfigError: one does not.
    """
    import modal

    named = {
        secret
        for profile in config.workers.values()
        for secret in deployment.base_secrets(config, resources, profile)
    }
    with translated("look up the Secrets of the configuration"):
        missing = [
            secret for secret in sorted(named - {resources.secrets}) if not known(modal.Secret, secret)
        ]
    if missing:
        raise ConfigError(
            f"Modal has no Secret {', '.join(missing)}; create it, or change image.secrets or "
            "workers.*.secrets"
        )


def put(
    config: EnvironmentConfig, resources: names.ResourceNames, key_made: Callable[[str], None]
) -> tuple[Status, str]:
    """Create the environment's Secrets, or bring what may change in them up to date.

    :param key_made: given a Fernet key that was made, before Modal gets it: an answer may be lost, or the
        command end, when Modal has taken the key.
    :return: the step's status, and a detail to show.
    """
    import modal

    changeable = airflow_settings.secret_environment(config, resources.env)
    # Workers that reach Airflow by URL get the user's options, but neither database nor keys.
    not_for_workers = (airflow_settings.CONNECTION, airflow_settings.UI_PASSWORDS)
    for_workers = {name: value for name, value in changeable.items() if name not in not_for_workers}
    fernet_key = config.fernet_key or base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    keys = airflow_settings.SecretKeys(
        fernet_key=fernet_key,
        jwt_secret=secrets.token_urlsafe(64),
        api_secret_key=secrets.token_urlsafe(32),
    )
    with translated("create the Secrets"):
        _put_secret(resources.worker_secrets, for_workers, for_workers)
        existed = known(modal.Secret, resources.secrets)
        if not existed and config.fernet_key is None:
            key_made(fernet_key)
        _put_secret(
            resources.secrets, {**changeable, **airflow_settings.secret_keys_environment(keys)}, changeable
        )
    if not existed:
        given = config.fernet_key is not None
        return "created", "with the Fernet key of the configuration" if given else "with a new Fernet key"
    detail = "database URL and options written, keys kept"
    if config.fernet_key is not None:
        # Not even whether it is the same key can be told.
        detail += (
            "; keys.fernet_key was not used: the environment keeps the key that it was created with, which "
            "can't be read back or replaced. Remove it from the configuration; for another key, destroy and "
            "create the environment"
        )
    # Modal merges into a Secret: an option that was written once stays.
    left = sorted(set(_deployed_options(resources)) - set(config.airflow))
    if left:
        detail += f"; still set from before: {', '.join(left)} (to undo one, set it to Airflow's default)"
    return "updated", detail


def _deployed_options(resources: names.ResourceNames) -> tuple[str, ...]:
    """Return which Airflow options the last completed ``create`` wrote."""
    try:
        return deployment.read(VolumeFiles.open(resources)).airflow_options
    except UnreachableError:
        raise
    except ModalflowError as error:
        log.info("no earlier deployment to compare with: %s", error)
        return ()


def _put_secret(name: str, new: dict[str, str], changeable: dict[str, str]) -> None:
    """Create a Secret with the values ``new``, or write ``changeable`` into the one that exists."""
    import modal
    from modal import exception

    try:
        modal.Secret.objects.create(name, new)
    except exception.AlreadyExistsError:
        modal.Secret.from_name(name).update(changeable)

"""How does an environment come into being, and how does it go?

``create`` goes through steps that can all be repeated: it makes what is missing, brings the rest up to date
and never replaces a key, so running it again is how an interrupted one is completed and how a changed
configuration is deployed. The App is deployed before the database is claimed and its schema migrated, because
only its function ``control`` is certain to reach it; migrations take the scheduler's lock. Until then runs of
the new App find that the database is not ready, and do nothing.

``destroy`` removes what there is, and may be repeated as well.
"""

from __future__ import annotations

import base64
import binascii
import logging
import secrets
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import airflow_settings, database_steps, deployment, names
from airflow_provider_modal.app import CONTROL_TIMEOUT, build_app, describe
from airflow_provider_modal.control.client import ControlClient
from airflow_provider_modal.errors import (
    ERRORS_BY_KIND,
    ConfigError,
    ModalflowError,
    NotFoundError,
    UnreachableError,
    kind_of,
)
from airflow_provider_modal.image import build_image
from airflow_provider_modal.modal_errors import translated
from airflow_provider_modal.steps import Progress, Status, Steps
from airflow_provider_modal.volume.files import VolumeFiles

if TYPE_CHECKING:
    import modal

    from airflow_provider_modal.config import EnvironmentConfig

log = logging.getLogger(__name__)


@dataclass
class CreateSummary:
    """What ``create`` did.

    :param steps: status by step, in their order.
    :param fernet_key: the key that encrypts connections and variables, if this ``create`` made one. It can't
        be read back from Modal: whoever wants to move the database elsewhere must keep it. None otherwise.
    :param manifest: what is deployed now.
    """

    env: str
    steps: dict[str, str] = field(default_factory=dict)
    fernet_key: str | None = field(default=None, repr=False)
    app_url: str | None = None
    database: str | None = None
    max_connections: int | None = None
    manifest: deployment.Manifest | None = None


def create(
    config: EnvironmentConfig,
    env: str,
    *,
    progress: Progress | None = None,
    summary: CreateSummary | None = None,
) -> CreateSummary:
    """Create an environment, or bring one up to date.

    :param progress: told about every step.
    :param summary: filled in on the way. Pass one, and show its ``fernet_key`` whatever happens: a key that
        was made before a later step failed is told nowhere else.
    :raises ConfigError: the configuration can't work.
    :raises ModalflowError: a step failed; the text says what exists now and that running it again continues.
    """
    resources = names.ResourceNames(env)
    app, image = _checked_app(config, env)
    done = summary if summary is not None else CreateSummary(env)
    steps = Steps(progress, done.steps)
    try:
        with steps("secrets") as report:
            report(*_put_secrets(config, resources, done))
        with steps("volume") as report:
            report(_make_volume(resources), resources.volume)
        with steps("state") as report:
            report(_make_state(resources), f"{resources.state_dict}, {resources.events_queue}")
        with steps("app") as report:
            report(_deploy(app, resources), resources.app)
            done.app_url = app.get_dashboard_url()
        control = ControlClient(resources, timeout=CONTROL_TIMEOUT)
        with steps("database") as report:
            server = control.call("claim_database")
            done.max_connections = server.get("max_connections")
            done.database = f"{server['host']}, PostgreSQL {server['server_version']}"
            report("unchanged", done.database)
        with steps("schema") as report:
            database_steps.migrate(control, server, config.scheduler, report)
        with steps("manifest") as report:
            done.manifest = describe(config, env, image=image.object_id)
            deployment.write(VolumeFiles.open(resources), done.manifest)
            report("updated", names.MANIFEST_PATH)
    except ModalflowError as error:
        text = f"{error}\n{_what_exists(resources, done.steps)}"
        raise ERRORS_BY_KIND[kind_of(error)](text) from error
    return done


def destroy(
    env: str, *, keep_volume: bool = False, drop_schema: bool = False, progress: Progress | None = None
) -> dict[str, str]:
    """Remove an environment and return the status by step.

    :param keep_volume: leave the Volume with DAGs and logs.
    :param drop_schema: remove Airflow's tables from the database first; everything in them is lost.
    :raises NotFoundError: nothing of the environment exists.
    :raises ModalflowError: a step failed; running it again continues.
    """
    import modal

    resources = names.ResourceNames(env)
    if not _anything_exists(resources):
        raise NotFoundError(f"environment {env} does not exist: Modal has none of its resources")
    done: dict[str, str] = {}
    steps = Steps(progress, done)
    # Only the App reaches the database.
    if drop_schema:
        with steps("schema") as report:
            database_steps.drop_schema(resources, report)
    elif exists(env):
        with steps("database") as report:
            database_steps.release(resources, report)
    with steps("app") as report:
        report(_stop_app(resources.app))
    for step, kind, name in (
        ("events", modal.Queue, resources.events_queue),
        ("state", modal.Dict, resources.state_dict),
        ("secrets", modal.Secret, resources.secrets),
        ("worker secrets", modal.Secret, resources.worker_secrets),
        ("volume", modal.Volume, resources.volume),
    ):
        with steps(step) as report:
            if step == "volume" and keep_volume:
                report(_keep_volume(resources), name)
            else:
                report(_delete(kind, name), name)
    return done


def exists(env: str) -> bool:
    """Return whether the environment is deployed.

    :raises UnreachableError: Modal does not answer.
    """
    resources = names.ResourceNames(env)
    with translated(f"look up environment {env}"):
        return _find_app(resources.app) is not None


def _checked_app(config: EnvironmentConfig, env: str) -> tuple[modal.App, modal.Image]:
    """Find what can be found wrong without touching anything."""
    if config.fernet_key is not None:
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
    image = build_image(config)
    return build_app(config, env, image=image), image


def _put_secrets(
    config: EnvironmentConfig, resources: names.ResourceNames, done: CreateSummary
) -> tuple[Status, str]:
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
        status = _put_secret(
            resources.secrets, {**changeable, **airflow_settings.secret_keys_environment(keys)}, changeable
        )
    if status == "created":
        if config.fernet_key is not None:
            return status, "with the Fernet key of the configuration"
        done.fernet_key = fernet_key
        return status, "with a new Fernet key"
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
    return status, detail


def _deployed_options(resources: names.ResourceNames) -> tuple[str, ...]:
    """Return which Airflow options the last completed ``create`` wrote."""
    try:
        return deployment.read(VolumeFiles.open(resources)).airflow_options
    except UnreachableError:
        raise
    except ModalflowError as error:
        log.info("no earlier deployment to compare with: %s", error)
        return ()


def _put_secret(name: str, new: dict[str, str], changeable: dict[str, str]) -> Status:
    """Create a Secret with the values ``new``, or write ``changeable`` into the one that exists."""
    import modal
    from modal import exception

    try:
        modal.Secret.objects.create(name, new)
    except exception.AlreadyExistsError:
        modal.Secret.from_name(name).update(changeable)
        return "updated"
    return "created"


def _make_volume(resources: names.ResourceNames) -> Status:
    import modal
    from modal import exception

    with translated(f"create Volume {resources.volume}"):
        existed = _known(modal.Volume, resources.volume)
        try:
            modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
        except exception.InvalidError as error:
            raise ConfigError(
                f"Volume {resources.volume} can't be used ({error}); remove it, or choose another environment"
            ) from error
    return "unchanged" if existed else "created"


def _make_state(resources: names.ResourceNames) -> Status:
    import modal

    existed = []
    with translated("create Dict and Queue"):
        for kind, name in ((modal.Dict, resources.state_dict), (modal.Queue, resources.events_queue)):
            existed.append(_known(kind, name))
            kind.from_name(name, create_if_missing=True).hydrate()
    return "unchanged" if all(existed) else "created"


def _deploy(app: modal.App, resources: names.ResourceNames) -> Status:
    from modal import exception

    with translated(f"deploy App {resources.app}"):
        existed = _find_app(resources.app) is not None
        try:
            app.deploy()
        except exception.NotFoundError as error:
            # All resources of ours exist by now: it is a Secret that the user named.
            raise ConfigError(
                f"App {resources.app} needs something that does not exist on Modal: {error}; create it, or "
                "change image.secrets or workers.*.secrets"
            ) from error
        except exception.RemoteError as error:
            raise ModalflowError(f"the image of App {resources.app} could not be built: {error}") from error
        except exception.InvalidError as error:
            raise ConfigError(f"Modal refuses App {resources.app}: {error}") from error
    return "updated" if existed else "created"


def _stop_app(name: str) -> Status:
    with translated(f"stop App {name}"):
        app = _find_app(name)
        if app is None:
            return "absent"
        if hasattr(app, "stop"):
            app.stop()
            return "deleted"
    # Before modal 1.6 only its command line can do it.
    stopped = subprocess.run(
        [sys.executable, "-m", "modal", "app", "stop", "--yes", name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if stopped.returncode != 0:
        raise ModalflowError(f"can't stop App {name}: {stopped.stdout.strip()}")
    return "deleted"


def _delete(kind: Any, name: str) -> Status:
    from modal import exception

    with translated(f"delete {kind.__name__} {name}"):
        try:
            kind.objects.delete(name)
        except exception.NotFoundError:
            return "absent"
    return "deleted"


def _anything_exists(resources: names.ResourceNames) -> bool:
    import modal

    with translated(f"look up environment {resources.env}"):
        return _find_app(resources.app) is not None or any(
            _known(kind, name)
            for kind, name in (
                (modal.Volume, resources.volume),
                (modal.Secret, resources.secrets),
                (modal.Secret, resources.worker_secrets),
                (modal.Dict, resources.state_dict),
                (modal.Queue, resources.events_queue),
            )
        )


def _known(kind: Any, name: str) -> bool:
    from modal import exception

    try:
        kind.from_name(name).hydrate()
    except exception.NotFoundError:
        return False
    return True


def _keep_volume(resources: names.ResourceNames) -> Status:
    try:
        # Nothing is deployed any more, whatever else the Volume still holds.
        VolumeFiles.open(resources).remove(names.MANIFEST_PATH)
    except NotFoundError:
        return "absent"
    return "kept"


def _find_app(name: str) -> Any:
    import modal
    from modal import exception

    try:
        return modal.App.lookup(name)
    except exception.NotFoundError:
        return None


def _what_exists(resources: names.ResourceNames, steps: dict[str, str]) -> str:
    made_by = {
        "secrets": f"Secrets {resources.secrets} and {resources.worker_secrets}",
        "volume": f"Volume {resources.volume}",
        "state": f"Dict {resources.state_dict} and Queue {resources.events_queue}",
        "app": f"App {resources.app} with its schedule",
    }
    there = [
        f"perhaps {what}" if steps[step] == "failed" else what
        for step, what in made_by.items()
        if step in steps
    ]
    return (
        f"On Modal now: {'; '.join(there)}. Running create again continues; `modalflow destroy --env "
        f"{resources.env}` removes it."
    )

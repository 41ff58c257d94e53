"""How does an environment come into being, and how does it go?

``create`` goes through steps that can all be repeated: it makes what is missing, brings the rest up to date
and never replaces a key, so running it again is how an interrupted one is completed and how a changed
configuration is deployed. What can fail for long or by a mistake of the user, as the image's build, comes
first; the Secrets are written right before the App, because new containers of the App that is deployed so far
find what is in them. The App is deployed before the database is claimed and its schema migrated, because
only its function ``control`` is certain to reach it; migrations take the scheduler's lock. Until then runs of
the new App find that the database is not ready, and do nothing.

``destroy`` removes what there is, and may be repeated as well.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_provider_modal import database_steps, deployment, environment_secrets, names
from airflow_provider_modal.app import CONTROL_TIMEOUT, build_app, describe
from airflow_provider_modal.control.client import ControlClient
from airflow_provider_modal.errors import (
    ERRORS_BY_KIND,
    ConfigError,
    ModalflowError,
    NotFoundError,
    kind_of,
)
from airflow_provider_modal.image import build_image
from airflow_provider_modal.modal_errors import translated
from airflow_provider_modal.modal_objects import delete, find_app, known, stop_app
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
        While step "secrets" has not succeeded, Modal may or may not have it.
    :param manifest: what is deployed now.
    :param warnings: what a person should look at, although the environment is ready.
    """

    env: str
    steps: dict[str, str] = field(default_factory=dict)
    fernet_key: str | None = field(default=None, repr=False)
    app_url: str | None = None
    database: str | None = None
    max_connections: int | None = None
    manifest: deployment.Manifest | None = None
    warnings: list[str] = field(default_factory=list)

    def note_key(self, fernet_key: str) -> None:
        """Remember a key that was made."""
        self.fernet_key = fernet_key


def create(
    config: EnvironmentConfig,
    env: str,
    *,
    take_database: bool = False,
    progress: Progress | None = None,
    summary: CreateSummary | None = None,
) -> CreateSummary:
    """Create an environment, or bring one up to date.

    :param take_database: use the database although another Airflow uses it, or did: see ``db.takeover``.
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
        with steps("image") as report:
            environment_secrets.require_named(config, resources)
            _build(image, resources)
            report("unchanged", image.object_id)
        with steps("volume") as report:
            report(_make_volume(resources), resources.volume)
        with steps("state") as report:
            report(_make_state(resources), f"{resources.state_dict}, {resources.events_queue}")
        with steps("secrets") as report:
            report(*environment_secrets.put(config, resources, done.note_key))
        with steps("app") as report:
            report(_deploy(app, resources), resources.app)
            done.app_url = app.get_dashboard_url()
        control = ControlClient(resources, timeout=CONTROL_TIMEOUT)
        with steps("database") as report:
            server = control.call("claim_database", take=take_database)
            done.max_connections = server.get("max_connections")
            done.database = f"{server['host']}, PostgreSQL {server['server_version']}"
            report("unchanged", done.database)
            if server["unreadable"]:
                done.warnings.append(_unreadable(server["unreadable"], resources))
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
        report(stop_app(resources.app))
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
                report(delete(kind, name), name)
    return done


def exists(env: str) -> bool:
    """Return whether the environment is deployed.

    :raises UnreachableError: Modal does not answer.
    """
    resources = names.ResourceNames(env)
    with translated(f"look up environment {env}"):
        return find_app(resources.app) is not None


def _checked_app(config: EnvironmentConfig, env: str) -> tuple[modal.App, modal.Image]:
    """Find what can be found wrong without touching anything."""
    environment_secrets.check_fernet_key(config)
    image = build_image(config)
    return build_app(config, env, image=image), image


def _build(image: modal.Image, resources: names.ResourceNames) -> None:
    """Build the image, so that an image that can't be built leaves everything as it is.

    Modal builds on behalf of an App. One that is deployed already is not touched by that; before the first
    deployment it is an App that lives for as long as this takes.
    """
    import modal
    from modal import exception

    with translated(f"build the image of App {resources.app}"):
        try:
            app = find_app(resources.app)
            if app is not None:
                image.build(app)
            else:
                with modal.App(f"{resources.app}-image", include_source=False).run() as temporary:
                    image.build(temporary)
        except exception.RemoteError as error:
            raise ModalflowError(f"the image of App {resources.app} could not be built: {error}") from error
        except (exception.InvalidError, exception.NotFoundError) as error:
            raise ConfigError(f"Modal refuses the image of App {resources.app}: {error}") from error


def _make_volume(resources: names.ResourceNames) -> Status:
    import modal
    from modal import exception

    with translated(f"create Volume {resources.volume}"):
        existed = known(modal.Volume, resources.volume)
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
            existed.append(known(kind, name))
            kind.from_name(name, create_if_missing=True).hydrate()
    return "unchanged" if all(existed) else "created"


def _deploy(app: modal.App, resources: names.ResourceNames) -> Status:
    from modal import exception

    with translated(f"deploy App {resources.app}"):
        existed = find_app(resources.app) is not None
        try:
            app.deploy()
        except exception.NotFoundError as error:
            # All resources of ours exist by now: it is a Secret that the user named, and just removed.
            raise ConfigError(
                f"App {resources.app} needs something that does not exist on Modal: {error}; create it, or "
                "change image.secrets or workers.*.secrets"
            ) from error
        except exception.InvalidError as error:
            raise ConfigError(f"Modal refuses App {resources.app}: {error}") from error
    return "updated" if existed else "created"


def _anything_exists(resources: names.ResourceNames) -> bool:
    import modal

    with translated(f"look up environment {resources.env}"):
        return find_app(resources.app) is not None or any(
            known(kind, name)
            for kind, name in (
                (modal.Volume, resources.volume),
                (modal.Secret, resources.secrets),
                (modal.Secret, resources.worker_secrets),
                (modal.Dict, resources.state_dict),
                (modal.Queue, resources.events_queue),
            )
        )


def _unreadable(count: int, resources: names.ResourceNames) -> str:
    return (
        f"the database has connections and variables that can't be read (found: {count}): they were "
        "encrypted with another Fernet key than the environment has. With that key: modalflow destroy --env "
        f"{resources.env} (the tables stay), set keys.fernet_key to it, and create the environment again. "
        "Without it: enter them anew"
    )


def _keep_volume(resources: names.ResourceNames) -> Status:
    try:
        # Nothing is deployed any more, whatever else the Volume still holds.
        VolumeFiles.open(resources).remove(names.MANIFEST_PATH)
    except NotFoundError:
        return "absent"
    return "kept"


def _what_exists(resources: names.ResourceNames, steps: dict[str, str]) -> str:
    made_by = {
        "volume": f"Volume {resources.volume}",
        "state": f"Dict {resources.state_dict} and Queue {resources.events_queue}",
        "secrets": f"Secrets {resources.secrets} and {resources.worker_secrets}",
        "app": f"App {resources.app} with its schedule",
    }
    there = [
        f"perhaps {what}" if steps[step] == "failed" else what
        for step, what in made_by.items()
        if step in steps
    ]
    if not there:
        return "Nothing was changed on Modal."
    return (
        f"On Modal now: {'; '.join(there)}. Running create again continues; `modalflow destroy --env "
        f"{resources.env}` removes it."
    )

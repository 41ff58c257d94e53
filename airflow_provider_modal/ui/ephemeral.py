"""What serves the UI on Modal, and for how long?

An App of one web function that lives as long as the process which runs it: when that one ends, or is no
longer heard of, Modal stops the App. Imports modal, never Airflow.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_provider_modal import __version__, airflow_settings, deployment, names
from airflow_provider_modal.app import STARTUP_TIMEOUT
from airflow_provider_modal.config import EnvironmentConfig
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.modal_errors import translated

if TYPE_CHECKING:
    import modal

SCALEDOWN_WINDOW = 300
"""Seconds without a request after which the container goes, and the next one waits for a cold start. A page
that is open asks every few seconds."""
REQUEST_TIMEOUT = 300
CONCURRENT_REQUESTS = 100


@dataclass(frozen=True)
class Served:
    """Where the UI is, and who may log in.

    :param app_id: of the ephemeral App, whose log has the requests.
    :param users: roles by name; empty if an auth manager of the user's choice decides.
    :param password: of the only user, if it was made for this time; else None.
    """

    url: str
    app_id: str
    users: dict[str, str]
    password: str | None = field(default=None, repr=False)


@contextmanager
def serve(resources: names.ResourceNames, manifest: deployment.Manifest) -> Iterator[Served]:
    """Serve an environment's UI until the block is left.

    :raises ConfigError: the environment was deployed by another release.
    :raises UnreachableError: Modal does not answer.
    """
    config = _config(manifest)
    users = {name: user.role for name, user in config.ui_users.items()}
    password = None
    if "core.auth_manager" in manifest.airflow_options:
        users = {}
    elif not users:
        password = secrets.token_urlsafe(12)
        users = {airflow_settings.UI_USER: "admin"}
    with translated(f"serve the UI of environment {resources.env}"):
        app, function = _build(resources, manifest, config, password)
        running = app.run()
        running.__enter__()
    try:
        url = function.get_web_url()
        assert url is not None and app.app_id is not None
        yield Served(url, app.app_id, users, password)
    finally:
        with translated(f"stop serving the UI of environment {resources.env}"):
            running.__exit__(None, None, None)


def _config(manifest: deployment.Manifest) -> EnvironmentConfig:
    try:
        if manifest.image is None:
            raise KeyError("image")
        if manifest.package != __version__:
            raise ValueError(f"version {manifest.package}, here is {__version__}")
        return EnvironmentConfig.from_settings(manifest.settings)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"environment {manifest.env} was deployed by another release of this package ({error}); "
            f"redeploy: modalflow create --env {manifest.env} --config config.yaml"
        ) from None


def _build(
    resources: names.ResourceNames,
    manifest: deployment.Manifest,
    config: EnvironmentConfig,
    password: str | None,
) -> tuple[modal.App, modal.Function]:
    import modal

    from airflow_provider_modal.container import entry
    from airflow_provider_modal.image import with_package

    assert manifest.image is not None
    app = modal.App(resources.ui_app, include_source=False)
    of_environment = deployment.base_secrets(config, resources)
    temporary = {} if password is None else {airflow_settings.UI_PASSWORD: password}
    function = app.function(
        name="ui",
        image=with_package(modal.Image.from_id(manifest.image)),
        include_source=False,
        env={
            **airflow_settings.function_environment(config, resources.env, "ui"),
            airflow_settings.DEPLOYMENT: airflow_settings.new_deployment(),
        },
        secrets=[
            *(modal.Secret.from_name(secret) for secret in of_environment),
            modal.Secret.from_dict({**temporary}),
        ],
        volumes={manifest.volume_path: modal.Volume.from_name(resources.volume, version=2)},
        cpu=1.0,
        memory=1024,
        # One container, so that a page's many requests find it warm.
        max_containers=1,
        scaledown_window=SCALEDOWN_WINDOW,
        startup_timeout=STARTUP_TIMEOUT,
        timeout=REQUEST_TIMEOUT,
    )(modal.concurrent(max_inputs=CONCURRENT_REQUESTS)(modal.asgi_app()(entry.ui)))
    return app, function

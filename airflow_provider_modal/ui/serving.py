"""What serves Airflow's UI in a container of an environment?

Airflow's own app, with the environment's settings, its login, and around it what wakes the scheduler. Who may
log in: the users of the configuration, else one whose password is made for as long as the UI is served; with
an auth manager of the user's choice, whom that one knows.
"""

from __future__ import annotations

import json
import os
from collections.abc import MutableMapping
from functools import partial
from importlib import import_module
from pathlib import Path

from airflow_provider_modal import airflow_settings, wakeup
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.ui.waking import App, WakesScheduler
from airflow_provider_modal.version_compat import adapter

_AUTH_MANAGER = "AIRFLOW__CORE__AUTH_MANAGER"
_SIMPLE = "SimpleAuthManager"
"""Airflow 3's default."""


def app() -> App:
    """Return the ASGI app; to be called once, before Airflow is imported in this process.

    :raises ConfigError: nobody could log in, because the container was not started by ``modalflow ui``.
    """
    admit_users(os.environ, airflow_settings.local_root() / "ui_passwords.json")
    airflow_settings.apply()
    resources = airflow_settings.deployed_names()
    return WakesScheduler(
        import_module(adapter("airflow_provider_modal.ui")).app(), partial(wakeup.request_run, resources)
    )


def admit_users(environ: MutableMapping[str, str], passwords_file: Path) -> None:
    """Tell Airflow's simple auth manager who may log in, and take the passwords out of the environment.

    Does nothing where the user chose another auth manager.

    :param passwords_file: is replaced; only this process's user can read it.
    :raises ConfigError: there is nobody who could.
    """
    if environ.get(_AUTH_MANAGER, _SIMPLE).rpartition(".")[2] != _SIMPLE:
        return
    passwords = json.loads(environ.pop(airflow_settings.UI_PASSWORDS, "{}"))
    roles = {name: user.role for name, user in airflow_settings.deployed_config(environ).ui_users.items()}
    temporary = environ.pop(airflow_settings.UI_PASSWORD, None)
    if not roles and temporary is not None:
        passwords, roles = {airflow_settings.UI_USER: temporary}, {airflow_settings.UI_USER: "admin"}
    # Without a password in the file, the simple auth manager would make one and print it into the log.
    missing = sorted(set(roles) - set(passwords))
    if missing or not roles:
        raise ConfigError(
            f"no password for {', '.join(missing) or 'any user'} reached this container; run modalflow "
            "create again, then modalflow ui"
        )
    passwords_file.parent.mkdir(parents=True, exist_ok=True)
    passwords_file.unlink(missing_ok=True)
    file = os.open(passwords_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(file, "w", encoding="utf-8") as stream:
        json.dump({name: passwords[name] for name in roles}, stream)
    environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = ",".join(
        f"{name}:{role}" for name, role in sorted(roles.items())
    )
    environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"] = str(passwords_file)

"""Who may log in to the UI, and where do the passwords go?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_provider_modal import airflow_settings, config
from airflow_provider_modal.airflow_settings import UI_PASSWORD, UI_PASSWORDS
from airflow_provider_modal.config import EnvironmentConfig, UiUser
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.ui.serving import admit_users

DATABASE = {"connection_string": "postgresql://u:p@h/db"}
ROLES = "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"
USERS = {"alice": UiUser("first", "viewer"), "bob": UiUser("second")}


def _environ(users: dict[str, UiUser], **more: str) -> dict[str, str]:
    configured = EnvironmentConfig(connection_string="postgresql://u:p@h/db", ui_users=users)
    environ = airflow_settings.secret_environment(configured, "dev")
    return {**environ, **airflow_settings.function_environment(configured, "dev", "ui"), **more}


def test_configured_users_log_in_with_their_passwords(tmp_path: Path) -> None:
    environ = _environ(USERS, **{UI_PASSWORD: "not theirs"})
    file = tmp_path / "root" / "passwords.json"
    admit_users(environ, file)
    assert json.loads(file.read_text()) == {"alice": "first", "bob": "second"}
    assert file.stat().st_mode & 0o777 == 0o600
    assert environ[ROLES] == "alice:viewer,bob:admin"
    assert UI_PASSWORDS not in environ and UI_PASSWORD not in environ


def test_without_users_one_has_the_password_of_the_moment(tmp_path: Path) -> None:
    file = tmp_path / "passwords.json"
    file.write_text("of a container before")
    environ = _environ({}, **{UI_PASSWORD: "for now"})
    admit_users(environ, file)
    assert json.loads(file.read_text()) == {"admin": "for now"}
    assert environ[ROLES] == "admin:admin"


@pytest.mark.parametrize("lost", [UI_PASSWORDS, None])
def test_nobody_is_admitted_without_a_password(tmp_path: Path, lost: str | None) -> None:
    environ = _environ(USERS if lost else {})
    if lost:
        environ.pop(lost)
    with pytest.raises(ConfigError, match=r"no password for (alice, bob|any user)"):
        admit_users(environ, tmp_path / "passwords.json")


def test_another_auth_manager_decides_itself(tmp_path: Path) -> None:
    environ = _environ({}, AIRFLOW__CORE__AUTH_MANAGER="somewhere.FabAuthManager")
    admit_users(environ, tmp_path / "passwords.json")
    assert ROLES not in environ and not list(tmp_path.iterdir())


def test_passwords_stay_in_the_secret() -> None:
    parsed = config.parse(
        {"database": DATABASE, "ui": {"users": {"alice": {"password": "${ALICE}", "role": "op"}}}},
        source="config.yaml",
        environ={"ALICE": "hush"},
    )
    assert parsed.ui_users == {"alice": UiUser("hush", "op")}
    assert "hush" not in repr(parsed) + json.dumps(parsed.to_settings())
    assert EnvironmentConfig.from_settings(parsed.to_settings()).ui_users == {"alice": UiUser("", "op")}


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ({"alice": {"role": "op"}}, r"ui\.users\.alice\.password is missing"),
        ({"alice": {"password": "x", "role": "king"}}, "one of viewer, user, op, admin, found 'king'"),
        ({"a:b": {"password": "x"}}, "letters, digits"),
        ({"alice": {"pasword": "x"}}, r"did you mean ui\.users\.alice\.password"),
    ],
)
def test_users_that_could_not_log_in_are_refused(users: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.parse({"database": DATABASE, "ui": {"users": users}}, source="config.yaml", environ={})

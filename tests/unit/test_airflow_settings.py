from __future__ import annotations

import json
import subprocess
import sys

import pytest

from airflow_provider_modal import airflow_settings, config, names
from airflow_provider_modal.airflow_settings import SecretKeys
from airflow_provider_modal.config import EnvironmentConfig
from airflow_provider_modal.db import engine
from airflow_provider_modal.errors import ConfigError

PASSWORD = "p4ss-w0rd"
URL = f"postgresql://airflow:{PASSWORD}@db.example.com/airflow"


@pytest.fixture
def configured() -> EnvironmentConfig:
    return config.parse(
        {
            "database": {"connection_string": URL},
            "executor": {"parallelism": 3, "zombie_after_seconds": 77},
            "scheduler": {"parse_timeout_seconds": 2.5},
            "airflow": {"core.load_examples": True, "smtp.smtp_password": PASSWORD},
        },
        source="config.yaml",
        environ={},
    )


def container(configured: EnvironmentConfig) -> dict[str, str]:
    """The environment of a container before ``apply``."""
    return {
        **airflow_settings.function_environment(configured, "dev", "worker"),
        **airflow_settings.secret_environment(configured, "dev"),
    }


def test_the_open_environment_of_a_function_holds_no_secret(configured: EnvironmentConfig) -> None:
    assert PASSWORD not in json.dumps(airflow_settings.function_environment(configured, "dev", "tick"))


def test_a_container_is_configured_by_its_environment(configured: EnvironmentConfig) -> None:
    environ = container(configured)
    airflow_settings.apply(environ)
    assert environ["AIRFLOW__CORE__EXECUTOR"] == "airflow_provider_modal.executors.ModalExecutor"
    assert environ["AIRFLOW__CORE__PARALLELISM"] == "3"
    assert environ["AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT"] == "2.5"
    assert environ["AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT"] == "77"
    assert environ["AIRFLOW__MODAL__ENVIRONMENT"] == "dev"
    bundles = json.loads(environ["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"])
    assert [bundle["name"] for bundle in bundles] == [names.BUNDLE_NAME]


def test_options_that_apply_sets_in_any_case_are_refused_in_the_configuration(
    configured: EnvironmentConfig,
) -> None:
    """What would be overwritten silently must be refused: compare what two different wishes lead to."""
    plain = container(configured)
    airflow_settings.apply(plain)
    wishes = {name: "wish" for name in plain if name.startswith("AIRFLOW__")}
    wished = {**container(configured), **wishes}
    airflow_settings.apply(wished)
    overwritten = [name for name in wishes if wished[name] != "wish"]
    assert overwritten
    for variable in overwritten:
        section, _, option = variable.removeprefix("AIRFLOW__").lower().partition("__")
        with pytest.raises(ConfigError, match="can't be set here"):
            config.parse(
                {"database": {"connection_string": URL}, "airflow": {f"{section}.{option}": "wish"}},
                source="config.yaml",
                environ={},
            )


def test_keys_that_create_makes_are_refused_in_the_configuration() -> None:
    keys = airflow_settings.secret_keys_environment(SecretKeys("f", "j", "a"))
    for variable in keys:
        section, _, option = variable.removeprefix("AIRFLOW__").lower().partition("__")
        with pytest.raises(ConfigError, match="can't be set here"):
            config.parse(
                {"database": {"connection_string": URL}, "airflow": {f"{section}.{option}": "wish"}},
                source="config.yaml",
                environ={},
            )


def test_a_task_may_wait_a_day_in_modals_queue_unless_the_user_says_otherwise(
    configured: EnvironmentConfig,
) -> None:
    option = "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT"
    environ = container(configured)
    airflow_settings.apply(environ)
    assert float(environ[option]) == 24 * 3600
    environ = {**container(configured), option: "900"}
    airflow_settings.apply(environ)
    assert environ[option] == "900"


def test_options_of_the_user_win_over_defaults(configured: EnvironmentConfig) -> None:
    environ = container(configured)
    airflow_settings.apply(environ)
    assert environ["AIRFLOW__CORE__LOAD_EXAMPLES"] == "True"


def test_apply_is_repeatable(configured: EnvironmentConfig) -> None:
    environ = container(configured)
    airflow_settings.apply(environ)
    once = dict(environ)
    airflow_settings.apply(environ)
    assert environ == once


def test_the_database_url_is_for_sqlalchemy_there_and_for_psycopg2_here(
    configured: EnvironmentConfig,
) -> None:
    environ = container(configured)
    assert environ[airflow_settings.CONNECTION].startswith("postgresql+psycopg2://")
    assert airflow_settings.database_url(environ) == URL


def test_every_key_reaches_airflow() -> None:
    keys = SecretKeys(fernet_key="f", jwt_secret="j", api_secret_key="a")
    assert set(airflow_settings.secret_keys_environment(keys).values()) == {"f", "j", "a"}
    assert "f'" not in repr(keys)


def test_a_worker_of_another_release_says_to_redeploy() -> None:
    for settings in (None, "not json", "[]", "{}", '{"scheduler": {"gone": 1}}'):
        environ = {} if settings is None else {airflow_settings.SETTINGS: settings}
        with pytest.raises(ConfigError, match="redeploy: modalflow create"):
            airflow_settings.deployed_config(environ)


def test_an_option_with_dots_in_its_section_is_found_by_airflow() -> None:
    configured = config.parse(
        {"database": {"connection_string": URL}, "airflow": {"logging.x.y": "z", "core.a-b": 1}},
        source="config.yaml",
        environ={},
    )
    assert airflow_settings.secret_environment(configured, "dev")["AIRFLOW__LOGGING_X__Y"] == "z"


def test_airflow_reads_what_apply_sets(configured: EnvironmentConfig, tmp_path: object) -> None:
    """Airflow itself agrees on the names of variables, for the options that the product rests on."""
    environ = container(configured)
    airflow_settings.apply(environ)
    script = (
        "import json; from airflow.configuration import conf\n"
        "print(json.dumps([conf.get('core', 'executor'), conf.getint('core', 'parallelism'),"
        " conf.get('core', 'hostname_callable'), conf.get('database', 'sql_alchemy_conn'),"
        " conf.get('modal', 'environment'), conf.getboolean('modal', 'serverless'),"
        " conf.getimport('database', 'sql_alchemy_connect_args')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**environ, "PATH": "/usr/bin:/bin", "AIRFLOW_HOME": str(tmp_path), "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [
        "airflow_provider_modal.executors.ModalExecutor",
        3,
        "airflow_provider_modal.container.identity.get_hostname",
        URL.replace("postgresql:", "postgresql+psycopg2:"),
        "dev",
        True,
        engine.connect_arguments({}),
    ]


def test_what_the_url_says_of_a_connection_wins() -> None:
    usual = engine.connect_arguments({})
    assert usual["connect_timeout"] == 10 and usual["tcp_user_timeout"] == 30_000
    url = URL.replace("postgresql:", "postgresql+psycopg2:") + "?connect_timeout=60&sslmode=require"
    given = engine.connect_arguments({airflow_settings.CONNECTION: url})
    assert usual.items() - given.items() == {("connect_timeout", 10)}

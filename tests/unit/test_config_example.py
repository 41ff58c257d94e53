"""Does the example that `modalflow config example` prints fit what is read?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from airflow_provider_modal import config
from airflow_provider_modal.cli.main import cli
from airflow_provider_modal.config_example import documented, example

ENVIRON = {"DATABASE_URL": "postgresql://u:hush@h/d", "FERNET_KEY": "A" * 43 + "="}
DEFAULTS = config.EnvironmentConfig("postgresql://u:hush@h/d")


def parsed(text: str) -> config.EnvironmentConfig:
    return config.parse(yaml.safe_load(text), source="example", environ=ENVIRON)


def test_the_example_changes_no_default() -> None:
    assert parsed(example()) == DEFAULTS


def test_every_key_of_it_is_a_default_that_can_be_switched_on() -> None:
    switched_on = re.sub(r"^( *)#(?=[a-z_.]+:)", r"\1", example(), flags=re.MULTILINE)
    with pytest.raises(config.ConfigError, match=r"ui\.users\.alice\.password is missing"):
        parsed(switched_on)
    read = parsed(switched_on.replace('password: ""', "password: x"))
    assert (read.scheduler, read.executor, read.image) == (
        DEFAULTS.scheduler,
        DEFAULTS.executor,
        DEFAULTS.image,
    )
    assert read.workers == DEFAULTS.workers
    assert read.ui_users == {"alice": config.UiUser("x")}
    assert read.airflow == {"core.max_active_runs_per_dag": "4"}
    assert read.fernet_key == ENVIRON["FERNET_KEY"]


def test_no_section_is_left_out_and_no_line_is_too_long() -> None:
    assert set(yaml.safe_load(example())) == set(config.SECTIONS)
    assert max(map(len, example().splitlines())) <= 110


def test_a_field_without_a_word_is_noticed() -> None:
    class Silent(config.UiUser):
        pass

    with pytest.raises(ValueError, match="password, role"):
        documented(Silent)


def test_a_configuration_is_checked_without_a_connection(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    runner = CliRunner(env={**ENVIRON, "MODAL_SERVER_URL": "http://127.0.0.1:1"})
    path.write_text(runner.invoke(cli, ["config", "example"]).stdout + "\n")
    right = runner.invoke(cli, ["config", "check", str(path)])
    assert (right.exit_code, right.stderr) == (0, "")
    assert "is right: parallelism 16, a tick every 60 s, worker profiles default" in right.stdout
    assert "hush" not in runner.invoke(cli, ["config", "check", str(path), "--json"]).stdout

    path.write_text("database: {connection_string: '${DATABASE_URL}'}\nworkers: {big: {gpu: H10}}\n")
    odd = runner.invoke(cli, ["config", "check", str(path)])
    assert odd.exit_code == 0
    assert "Warning: gpus: not on Modal's list" in odd.stderr

    path.write_text("database: {connection_string: '${DATABASE_URL}'}\nkeys: {fernet_key: short}\n")
    wrong = runner.invoke(cli, ["config", "check", str(path)])
    assert wrong.exit_code == 2
    assert "keys.fernet_key is not a Fernet key" in wrong.stderr

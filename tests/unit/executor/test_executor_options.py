from __future__ import annotations

from dataclasses import fields

import pytest

from airflow_provider_modal.config import XComConfig
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.executors.options import SECTION, Options, too_soon
from airflow_provider_modal.get_provider_info import get_provider_info
from airflow_provider_modal.xcom.af3 import THRESHOLD


class Settings:
    def __init__(self, **values: str) -> None:
        self.values = values

    def get(self, section: str, key: str, *, fallback: str | None = None) -> str | None:
        assert section == SECTION
        return self.values.get(key, fallback)


OF_XCOMS = {"xcom_threshold_bytes", "xcom_allow_pickle"}
"""Options of the section that are not the executor's."""


def test_defaults_are_those_of_the_manifest() -> None:
    manifest = get_provider_info()["config"][SECTION]["options"]
    assert set(manifest) - OF_XCOMS == {option.name for option in fields(Options)}
    assert manifest["xcom_threshold_bytes"]["default"] == str(XComConfig.threshold_bytes) == str(THRESHOLD)
    assert manifest["xcom_allow_pickle"]["default"] == str(XComConfig.allow_pickle)
    documented = {
        name: option["default"] for name, option in manifest.items() if option["default"] is not None
    }
    assert Options.read(Settings(**documented)) == Options() == Options.read(Settings())


def test_types_are_those_of_the_manifest() -> None:
    manifest = get_provider_info()["config"][SECTION]["options"]
    words = {"str | None": "string", "bool": "boolean", "int": "integer", "float": "float"}
    assert {option.name: words[str(option.type)] for option in fields(Options)} == {
        name: option["type"] for name, option in manifest.items() if name not in OF_XCOMS
    }


def test_values_are_read_with_their_types() -> None:
    options = Options.read(
        Settings(environment="prod", serverless="true", rpc_timeout="2.5", submit_concurrency="4")
    )
    assert (options.environment, options.serverless) == ("prod", True)
    assert (options.rpc_timeout, options.submit_concurrency) == (2.5, 4)


def test_an_airflow_that_gives_up_before_the_executor_does_is_told() -> None:
    options = Options(capacity_timeout=3600.0)
    warning = str(too_soon(options, 600.0))
    assert "[scheduler] task_queued_timeout is 600 s" in warning
    assert "[modal] capacity_timeout 3600 s" in warning
    assert too_soon(options, 3600.0) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rpc_timeout", "soon"),
        ("rpc_timeout", "0"),
        ("rpc_timeout", "nan"),
        ("rpc_timeout", "inf"),
        ("submit_concurrency", "2.5"),
        ("submit_concurrency", "-1"),
        ("serverless", "maybe"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[modal\] {name} must be .*'{text}'"):
        Options.read(Settings(**{name: text}))

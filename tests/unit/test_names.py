from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_modal import names
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.names import ResourceNames

MODAL_OBJECT_NAME = re.compile(r"[a-zA-Z0-9._-]{1,63}")


@pytest.mark.parametrize("env", ["a", "dev", "prod-2", "0", "a--b", "x" * 32])
def test_allowed_environment_names_give_names_that_modal_allows(env: str) -> None:
    resources = ResourceNames(env)
    all_names = [
        resources.app,
        resources.volume,
        resources.state_dict,
        resources.events_queue,
        resources.secrets,
        resources.worker_secrets,
        resources.ui_app,
    ]
    assert len(set(all_names)) == len(all_names)
    assert all(MODAL_OBJECT_NAME.fullmatch(name) for name in all_names)


@pytest.mark.parametrize(
    "env", ["", "A", "a_b", "-a", "a-", "a.b", "a b", "../x", "x" * 33, "ä", "a\n", "a/b", "٣"]
)
def test_other_environment_names_are_refused(env: str) -> None:
    with pytest.raises(ConfigError, match="environment name"):
        ResourceNames(env)


def test_an_environment_whose_app_would_be_another_ones_ui_is_refused() -> None:
    with pytest.raises(ConfigError, match="the name of the UI of environment 'prod'"):
        ResourceNames("ui-prod")
    assert ResourceNames("ui").app != ResourceNames("prod").ui_app


@given(st.text(max_size=40))
def test_what_is_accepted_is_ascii_and_short(env: str) -> None:
    try:
        ResourceNames(env)
    except ConfigError:
        return
    assert re.fullmatch(r"[a-z0-9-]{1,32}", env)


@given(st.text(max_size=40))
def test_functions_of_profiles_are_identifiers_of_modal(profile: str) -> None:
    try:
        function = names.task_function(profile)
    except ConfigError:
        return
    assert MODAL_OBJECT_NAME.fullmatch(function)


def test_the_default_profile_has_the_plain_function() -> None:
    assert names.task_function("default") == "execute_task"
    assert names.task_function("gpu") == "execute_task_gpu"


@pytest.mark.parametrize("team", [None, "alpha", "x" * 24, "x" * 25, "x" * 50])
def test_a_partition_is_no_longer_than_modal_allows(team: str | None) -> None:
    partitions = [names.job_partition(uuid.uuid4().hex, team), names.scheduler_partition(team)]
    assert max(map(len, partitions)) <= 64


def test_keys_of_a_dispatch_differ() -> None:
    keys = {names.call_key("d"), names.claim_key("d"), names.result_key("d"), names.call_key("e")}
    assert len(keys) == 4
    assert names.WAKE_KEY not in keys
    assert names.job_partition(7) != names.SCHEDULER_PARTITION

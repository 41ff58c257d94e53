"""Does the executor use the token and the Modal environment of an Airflow connection, and only those?"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from airflow.utils.state import TaskInstanceState

from airflow_provider_modal.errors import ConfigError, UnreachableError
from airflow_provider_modal.executors.account import Account
from airflow_provider_modal.executors.deployed import Deployed
from airflow_provider_modal.executors.options import Options
from local_modal.clients import TOKEN_ID
from local_modal.testing import LocalModal

ENVIRONMENT = "main"


@pytest.fixture
def connected(modal_server: LocalModal, settings: pytest.MonkeyPatch) -> Callable[..., None]:
    """Defines connection ``modal_team``; what the SDK finds by itself is a token that Modal refuses."""

    def define(**values: Any) -> None:
        fields = {"conn_type": "modal", "login": TOKEN_ID, "password": modal_server.token, **values}
        settings.setenv("AIRFLOW_CONN_MODAL_TEAM", json.dumps(fields))
        settings.setenv("AIRFLOW__MODAL__CONNECTION_ID", "modal_team")
        settings.setenv("MODAL_TOKEN_SECRET", "as-nobody")

    return define


def test_tasks_run_with_the_connections_token(
    connected: Callable[..., None],
    new_loop: Callable[..., Any],
    modal_server: LocalModal,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # Not the SDK's libraries', which log every header.
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "airflow_provider_modal")
    connected(extra={"environment": ENVIRONMENT})
    loop = new_loop()
    loop.queue("works")
    # Options go by another way to the SDK: variants of functions, with Secrets.
    loop.queue("with_memory", executor_config={"modal": {"memory": 512}})
    loop.until(lambda: loop.ended("works", "with_memory"))
    assert {events[-1] for events in loop.events.values()} == {(TaskInstanceState.SUCCESS, None)}
    loop.executor.debug_dump()
    out, err = capfd.readouterr()
    assert modal_server.token not in caplog.text + out + err


def test_another_modal_environment_has_no_such_app(
    connected: Callable[..., None], new_loop: Callable[..., Any]
) -> None:
    connected(extra={"environment": "elsewhere"})
    loop = new_loop()
    loop.queue("works")
    loop.until(lambda: loop.ended("works"))
    state, reason = loop.events["works"][-1]
    assert state == TaskInstanceState.FAILED and "elsewhere" in reason


def test_a_refused_token_is_told_with_where_to_change_it(
    connected: Callable[..., None], new_loop: Callable[..., Any]
) -> None:
    connected(password="as-wrong")
    loop = new_loop()
    loop.queue("works")
    loop.until(lambda: loop.ended("works"))
    state, reason = loop.events["works"][-1]
    assert state == TaskInstanceState.FAILED
    assert "[modal] connection_id" in reason and "as-wrong" not in reason


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"conn_type": "http"}, "of type 'http'; it must be of type 'modal'"),
        ({"password": ""}, "has no password"),
        ({"login": ""}, "has no login"),
        ({"extra": {"environment": 5}}, "the name of a Modal environment"),
    ],
)
def test_a_wrong_connection_fails_tasks_with_a_sentence(
    connected: Callable[..., None], modal_server: LocalModal, fields: dict[str, Any], told: str
) -> None:
    connected(**fields)
    with pytest.raises(ConfigError, match=told) as refused:
        Account("modal_team").connect()
    assert modal_server.token not in str(refused.value)


def test_the_manifest_is_read_with_the_connections_token(
    connected: Callable[..., None], settings: pytest.MonkeyPatch
) -> None:
    connected()
    settings.delenv("MODALFLOW_SETTINGS")
    deployed = Deployed.find(Options(environment="stand-in", connection_id="modal_team"))
    with pytest.raises(Exception, match="stand-in") as refused:
        deployed.read_manifest()
    # The stand-in has no Volume: Modal knew the token, and looked.
    assert "token" not in str(refused.value)


def test_without_a_token_in_it_the_sdk_finds_its_own(
    connected: Callable[..., None], modal_server: LocalModal
) -> None:
    connected(login=None, password=None, extra={"environment": ENVIRONMENT})
    account = Account("modal_team")
    account.connect()
    assert (account.client, account.place) == ({}, {"environment_name": ENVIRONMENT})


def test_a_connection_that_is_not_there_is_waited_for(
    connected: Callable[..., None], settings: pytest.MonkeyPatch
) -> None:
    account = Account("modal_team")
    # Not in the environment: Airflow asks its database, and doesn't tell when that is away.
    settings.setattr("airflow.secrets.metastore.MetastoreBackend.get_connection", lambda *_, **__: None)
    with pytest.raises(UnreachableError, match="has no connection 'modal_team'"):
        account.connect()
    connected()
    account.connect()
    assert set(account.place) == {"client"}

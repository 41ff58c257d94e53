"""Secrets through the stock SDK."""

from __future__ import annotations

import stat
from collections.abc import Iterator

import modal
import pytest
from modal.exception import AlreadyExistsError, InvalidError, NotFoundError

from local_modal.testing import LocalModal
from tests.integration.local_modal.conftest import client, deploy
from tests.integration.local_modal.sdk import connected, unique

VALUE = "the-value-that-must-not-be-seen"


@pytest.fixture(scope="module")
def sdk(isolated_server: LocalModal) -> Iterator[modal.Client]:
    with connected(isolated_server) as connection:
        yield connection


def test_create_find_list_and_delete(sdk: modal.Client) -> None:
    name = unique("secret")
    modal.Secret.objects.create(name, {"A": VALUE}, client=sdk)
    with pytest.raises(AlreadyExistsError):
        modal.Secret.objects.create(name, {"A": "other"}, client=sdk)
    modal.Secret.objects.create(name, {"A": "other"}, allow_existing=True, client=sdk)
    assert modal.Secret.from_name(name, client=sdk).info().name == name
    assert name in [secret.name for secret in modal.Secret.objects.list(client=sdk)]
    modal.Secret.objects.delete(name, client=sdk)
    with pytest.raises(NotFoundError, match=f"Secret '{name}' not found"):
        modal.Secret.from_name(name, client=sdk).hydrate()


def test_required_keys(sdk: modal.Client) -> None:
    name = unique("secret")
    modal.Secret.objects.create(name, {"A": "1", "B": "2"}, client=sdk)
    modal.Secret.from_name(name, required_keys=["A", "B"], client=sdk).hydrate()
    with pytest.raises(InvalidError, match=f"Secret '{name}' has no key\\(s\\) C, D"):
        modal.Secret.from_name(name, required_keys=["A", "D", "C"], client=sdk).hydrate()


def test_containers_get_values_as_of_their_start(isolated_server: LocalModal, sdk: modal.Client) -> None:
    name, app = unique("secret"), unique("secrets")
    modal.Secret.objects.create(name, {"DATA_A": "old", "DATA_B": "kept"}, client=sdk)
    deploy(isolated_server, "data_secrets", TEST_APP_NAME=app, TEST_SECRET_NAME=name)
    look = "result = f('values', app).remote()"
    expected = {"DATA_A": "old", "DATA_B": "kept", "DATA_C": "later wins"}
    assert client(isolated_server, look, app=app) == expected
    modal.Secret.from_name(name, client=sdk).hydrate().update({"DATA_A": "new", "DATA_D": "added"})
    expected |= {"DATA_A": "new", "DATA_D": "added"}
    assert client(isolated_server, look, app=app) == expected


def test_values_survive_a_restart_and_nobody_else_can_read_them(fresh_local_modal: LocalModal) -> None:
    with connected(fresh_local_modal) as sdk:
        modal.Secret.objects.create("kept", {"A": VALUE}, client=sdk)
        secret = modal.Secret.from_name("kept", client=sdk).hydrate()
        secret.update({"B": VALUE})
        fresh_local_modal.kill()
        fresh_local_modal.start()
        modal.Secret.from_name("kept", required_keys=["A", "B"], client=sdk).hydrate()
    holding = [
        path
        for path in fresh_local_modal.state_dir.rglob("*")
        if path.is_file() and VALUE.encode() in path.read_bytes()
    ]
    assert holding, "the values have to be somewhere"
    for path in holding:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700, path.parent
    assert VALUE not in fresh_local_modal.log

"""Are XComs where Airflow's tasks look for them, on a real Volume, inside Modal and outside?"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import modal
import pytest

from airflow_provider_modal import airflow_settings, names
from airflow_provider_modal.errors import ConfigError, NotFoundError
from airflow_provider_modal.volume.files import VolumeFiles
from airflow_provider_modal.xcom import place
from airflow_provider_modal.xcom.af3 import VolumeXComBackend, XComNotStoredError
from airflow_provider_modal.xcom.payload import DamagedXComError
from airflow_provider_modal.xcom.reference import MARK, is_marked
from local_modal.testing import LocalModal
from tests.support.modal_env import using

THRESHOLD = "AIRFLOW__MODAL__XCOM_THRESHOLD_BYTES"
PICKLE = "AIRFLOW__MODAL__XCOM_ALLOW_PICKLE"
WHERE = {"dag_id": "a/dag", "run_id": "../run", "task_id": "task", "map_index": 3}


class NotJson:
    """A value that JSON can't carry."""

    def __init__(self) -> None:
        self.number = 7


@pytest.fixture(scope="module")
def resources(local_modal: LocalModal) -> Iterator[names.ResourceNames]:
    with using(local_modal):
        resources = names.ResourceNames(f"xcom-{uuid.uuid4().hex[:8]}")
        modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
        yield resources


@pytest.fixture
def outside(resources: names.ResourceNames, monkeypatch: pytest.MonkeyPatch) -> Iterator[VolumeFiles]:
    """An Airflow outside of Modal that is configured for the environment."""
    monkeypatch.setenv("AIRFLOW__MODAL__ENVIRONMENT", resources.env)
    monkeypatch.delenv(airflow_settings.ENV_NAME, raising=False)
    place.current.cache_clear()
    yield VolumeFiles.open(resources)
    place.current.cache_clear()


def _stored(value: Any, key: str = "return_value") -> Any:
    """What the database gets, and returns."""
    return json.loads(json.dumps(VolumeXComBackend.serialize_value(value, key=key, **WHERE)))


def _value(stored: Any) -> Any:
    return VolumeXComBackend.deserialize_value(SimpleNamespace(value=stored))


def test_values_come_back_from_database_or_volume(
    outside: VolumeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"at": datetime(2026, 1, 2, tzinfo=timezone.utc), "parts": [1, "two", None]}
    large = {"at": small["at"], "rows": ["row"] * 20_000}
    impostor = {MARK: 1, "path": "xcom/somebody/else"}
    assert not is_marked(_stored(small)) and _value(_stored(small)) == small

    stored = _stored(large, key="k*y/../\x00")
    assert stored["type"] == "dict" and stored["bytes"] > 100_000 > stored["stored_bytes"]
    assert stored["path"].startswith("xcom/a%2Fdag/%2E.%2Frun/task/3/k%2Ay%2F..%2F%00.")
    assert _value(stored) == large
    # As small as it is, it must not be taken for a reference.
    assert is_marked(_stored(impostor)) and _value(_stored(impostor)) == impostor

    monkeypatch.setenv(THRESHOLD, "0")
    for value in (small, None, 0, "", impostor, [large]):
        assert is_marked(_stored(value)) and _value(_stored(value)) == value
    assert len(outside.list("xcom/a%2Fdag", recursive=True)) >= 8
    # Airflow's scheduler reads it in the database.
    assert _stored({"skipped": ["b"]}, key="skipmixin_key") == {"skipped": ["b"]}


def test_a_mount_that_has_the_file_saves_the_call_and_is_not_trusted(
    outside: VolumeFiles, tmp_path: Path
) -> None:
    stored = _stored(["x"] * 20_000)
    mounted = tmp_path / stored["path"]
    mounted.parent.mkdir(parents=True)
    mounted.write_bytes(outside.read(stored["path"]))
    nowhere = place.Place(names.ResourceNames("not-there"), tmp_path)
    reference = place.Reference.from_value(stored)
    assert reference is not None and nowhere.load(reference) == ["x"] * 20_000
    mounted.write_bytes(b"scribbled over")
    assert place.Place(place.current()._resources, tmp_path).load(reference) == ["x"] * 20_000


def test_what_is_gone_or_damaged_is_named(outside: VolumeFiles) -> None:
    stored = _stored(["x"] * 20_000)
    outside.write(stored["path"], b"half of it")
    with pytest.raises(DamagedXComError, match="is damaged: it has 10 bytes"):
        _value(stored)
    VolumeXComBackend.purge(SimpleNamespace(value=stored))
    with pytest.raises(NotFoundError, match="not on the Volume any more"):
        _value(stored)
    VolumeXComBackend.purge(SimpleNamespace(value=stored))
    VolumeXComBackend.purge(SimpleNamespace(value=["a value"]))
    VolumeXComBackend.purge(SimpleNamespace(value={MARK: 99}))


def test_pickles_only_where_they_are_allowed(outside: VolumeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(XComNotStoredError, match=r"XCom 'k' of task 'task'.*NotJson.*allow_pickle"):
        _stored(NotJson(), key="k")
    monkeypatch.setenv(PICKLE, "True")
    stored = _stored(NotJson(), key="k")
    assert stored["type"].endswith("NotJson") and _value(stored).number == 7
    monkeypatch.setenv(PICKLE, "False")
    with pytest.raises(XComNotStoredError, match="is a pickle"):
        _value(stored)


def test_without_an_environment_the_setting_is_named(
    outside: VolumeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW__MODAL__ENVIRONMENT")
    with pytest.raises(ConfigError, match=r"set \[modal\] environment"):
        _stored(["x"] * 20_000)

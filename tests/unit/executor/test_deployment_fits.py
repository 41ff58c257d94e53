"""Which deployments does an executor send tasks to?"""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_modal import deployment
from airflow_provider_modal.app import describe
from airflow_provider_modal.config import EnvironmentConfig
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.executors import deployed as module
from airflow_provider_modal.executors.deployed import Deployed
from airflow_provider_modal.executors.ledger import Flight, Ledger
from airflow_provider_modal.names import ResourceNames

MANIFEST = describe(EnvironmentConfig(connection_string=""), "prod")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Deployed:
    """An executor's view from outside of the environment, which holds ``MANIFEST``."""
    monkeypatch.setattr(deployment, "read", lambda files: MANIFEST)
    return Deployed(ResourceNames("prod"))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"package": "0.0.9"}, "release 0.0.9 of this package"),
        ({"wire": 99}, "version 99 of the wire format, while the scheduler has 1"),
        ({"airflow": "2.0.0"}, "Airflow 2.0.0"),
    ],
)
def test_a_deployment_that_does_not_fit_is_refused_until_it_is_replaced(
    elsewhere: Deployed, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(deployment, "read", lambda files: replace(MANIFEST, **changed))
    with pytest.raises(ModalflowError, match=told) as refused:
        elsewhere.read_manifest()
    assert "redeploy: modalflow create --env prod" in str(refused.value)
    assert not elsewhere.must_read("default"), "tasks fail with the sentence rather than wait"
    with pytest.raises(ModalflowError, match=told):
        elsewhere.check("default")
    monkeypatch.setattr(deployment, "read", lambda files: MANIFEST)
    elsewhere.read_manifest()
    elsewhere.check("default")


def test_a_profile_of_a_later_deployment_that_does_not_fit_is_refused_with_the_reason(
    elsewhere: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere.read_manifest()
    monkeypatch.setattr(deployment, "read", lambda files: replace(MANIFEST, package="0.0.9"))
    now = time.monotonic() + 2 * module.READ_AGAIN
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    assert elsewhere.must_read("gpu")
    with pytest.raises(ModalflowError):
        elsewhere.read_manifest()
    assert elsewhere.settled and not elsewhere.must_read("gpu"), "its tasks fail rather than wait"
    with pytest.raises(ModalflowError, match=r"release 0\.0\.9 of this package"):
        elsewhere.check("gpu")
    elsewhere.check("default")


def test_a_distributors_build_of_the_same_airflow_fits(
    elsewhere: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = replace(MANIFEST, airflow=MANIFEST.airflow + "+distributor.1")
    monkeypatch.setattr(deployment, "read", lambda files: built)
    elsewhere.read_manifest()
    elsewhere.check("default")


def test_an_unknown_profile_is_looked_for_again_before_it_is_refused(
    elsewhere: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert elsewhere.must_read("gpu"), "nothing is known yet"
    elsewhere.read_manifest()
    assert not elsewhere.must_read("gpu"), "it was read a moment ago"
    monkeypatch.setattr(module, "READ_AGAIN", -1.0)
    assert elsewhere.must_read("gpu")
    assert not elsewhere.must_read("default")


def test_what_is_heard_of_a_dispatch_that_is_over_is_told_apart() -> None:
    ledger = Ledger()
    for dispatch, key in [("replaced", "a"), ("current", "a"), ("ended", "b"), ("revoked", "c")]:
        ledger.open(Flight(dispatch, key, last_sign=0))
    ledger.close("b", ended=True)
    ledger.close("c")
    assert [ledger.dropped_as(dispatch) for dispatch in ("replaced", "ended", "revoked", "unheard of")] == [
        "late_events",
        "repeated_events",
        "late_events",
        "foreign_events",
    ]

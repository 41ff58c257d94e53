"""What do the facts mean that `modalflow doctor` gathers?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_modal import app, prices
from airflow_provider_modal.cli import checks, doctor, modal_access
from airflow_provider_modal.config import EnvironmentConfig, ExecutorConfig, WorkerProfile
from airflow_provider_modal.errors import UnreachableError
from airflow_provider_modal.names import ResourceNames

CONFIG = EnvironmentConfig("postgresql://u@h/d")
HEALTHY: dict[str, Any] = {
    "at": 0.0,
    "volume": None,
    "unreachable": None,
    "database": {
        "host": "db.example:5432",
        "server_version": "16.1",
        "supported": True,
        "tls": "TLSv1.3",
        "max_connections": 100,
        "connections": 3,
        "revision": "abc",
        "ahead": 0.0,
    },
    "wrong": {"pooler": None, "owner": None, "scheduler": None, "schema": None},
}


def judged(database: dict[str, Any] | None = None, **facts: Any) -> dict[str, checks.Finding]:
    seen = {**HEALTHY, **facts, "database": {**HEALTHY["database"], **(database or {})}}
    return {each.check: each for each in checks.environment_inside(seen, CONFIG.to_settings())}


def test_a_healthy_environment_has_no_remedies() -> None:
    assert {(each.status, each.remedy) for each in judged().values()} == {("ok", None)}
    assert set(judged()) == {"volume", "database", *checks.DATABASE_CHECKS}


@pytest.mark.parametrize(
    ("facts", "check", "status", "says"),
    [
        ({"volume": "gone"}, "volume", "fail", "modalflow create"),
        ({"database": {"supported": False, "server_version": "12.3"}}, "database", "fail", "13 or later"),
        ({"database": {"tls": None}}, "tls", "warn", "sslmode=require"),
        ({"database": {"tls": None, "host": "127.0.0.1:5432"}}, "tls", "ok", ""),
        ({"database": {"max_connections": 20}}, "connections", "warn", "Lower parallelism to 10"),
        ({"database": {"ahead": 7.0}}, "clock of the database", "warn", "the database's host"),
        ({"database": {"ahead": -90.0}}, "clock of the database", "fail", "NTP"),
        ({"wrong": {**HEALTHY["wrong"], "pooler": "a pooler"}}, "pooler", "fail", "session mode"),
        ({"wrong": {**HEALTHY["wrong"], "owner": "belongs to x"}}, "owner", "fail", "of its own"),
        ({"wrong": {**HEALTHY["wrong"], "scheduler": "x holds it"}}, "owner", "fail", "of its own"),
        ({"wrong": {**HEALTHY["wrong"], "schema": "old"}}, "schema", "fail", "modalflow create"),
    ],
)
def test_each_fault_is_found_alone_with_its_remedy(
    facts: dict[str, Any], check: str, status: str, says: str
) -> None:
    findings = judged(**facts)
    assert findings[check].status == status
    assert says in (findings[check].remedy or "")
    assert {name for name, each in findings.items() if each.status != "ok"} == {check} - (
        {check} if status == "ok" else set()
    )


def test_without_the_database_its_checks_are_unknown() -> None:
    findings = judged(unreachable="no route to host")
    assert (findings["database"].status, findings["database"].found) == ("fail", "no route to host")
    assert {findings[check].status for check in checks.DATABASE_CHECKS} == {"unknown"}


def test_a_clock_is_wrong_only_by_what_the_way_does_not_explain() -> None:
    assert checks.local_clock(100.0, 160.0, 170.0).status == "ok"
    behind = checks.local_clock(100.0, 200.0, 170.0)
    assert (behind.status, behind.found) == ("warn", "30 s behind the containers'")
    assert checks.local_clock(1000.0, 100.0, 1001.0).status == "fail"


def test_another_release_is_told() -> None:
    manifest = app.describe(CONFIG, "dev")
    assert checks.release(manifest).status == "ok"
    assert checks.release(replace(manifest, airflow="3.9.9")).status == "warn"
    other = checks.release(replace(manifest, wire=999))
    assert other.status == "fail" and "modalflow create" in (other.remedy or "")


def test_a_scheduler_that_fails_now_and_then_is_a_warning() -> None:
    def status(state: str, failures: int = 0, triggerers: int = 0) -> str:
        triggerer = {"failures_in_a_row": triggerers}
        told = {"state": state, "detail": "why", "failures_in_a_row": failures, "triggerer": triggerer}
        return checks.scheduler(told).status

    assert (status("idle"), status("starting"), status("working")) == ("ok", "ok", "ok")
    assert (status("failing", 1), status("failing", 3), status("stopped")) == ("warn", "fail", "fail")
    assert (status("failing", 0, 1), status("failing", 0, 3)) == ("warn", "fail")


def settings(parallelism: int = 16, **profiles: WorkerProfile) -> dict[str, Any]:
    return EnvironmentConfig(
        "", executor=ExecutorConfig(parallelism=parallelism), workers={"default": WorkerProfile(), **profiles}
    ).to_settings()


def test_names_of_gpus_are_compared_with_modals_list() -> None:
    assert checks.gpus(settings()).status == "ok"
    assert checks.gpus(settings(big=WorkerProfile(gpu="h100:2"), any=WorkerProfile(gpu="any"))).status == "ok"
    strange = checks.gpus(settings(big=WorkerProfile(gpu="H10O:2")))
    assert strange.status == "warn"
    assert "workers.big.gpu: H100" in (strange.remedy or "")


def test_the_need_is_compared_with_the_smallest_plan() -> None:
    assert checks.plan(settings()).status == "ok"
    assert checks.plan(settings(parallelism=200)).status == "unknown"
    assert checks.plan(settings(big=WorkerProfile(gpu="T4"))).status == "unknown"
    assert checks.plan(settings(big=WorkerProfile(gpu="T4:2", max_containers=5))).status == "ok"


def test_nothing_is_claimed_of_what_can_not_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise UnreachableError("Modal does not answer")

    monkeypatch.setattr(modal_access, "probe", away)
    first, *others = doctor.examine(ResourceNames("dev"))
    assert (first.check, first.status, first.found) == ("modal", "fail", "Modal does not answer")
    assert {each.status for each in others} == {"unknown"}
    assert {"manifest", "release", "app", "database", "tls", "scheduler"} <= {each.check for each in others}


@pytest.mark.parametrize(
    ("cores", "mib", "gpu", "dollars_per_hour"),
    [
        (1, 1024, None, 3600 * (0.0000131 + 0.00000222)),
        (0.01, 1, None, 3600 * (0.125 * 0.0000131 + 0.125 * 0.00000222)),
        (1, 1024, "H100:2", 3600 * (0.0000131 + 0.00000222 + 2 * 0.001097)),
        (1, 1024, "a10g", 3600 * (0.0000131 + 0.00000222 + 0.000306)),
    ],
)
def test_list_prices(cores: float, mib: float, gpu: str | None, dollars_per_hour: float) -> None:
    rate = prices.rate(cores, mib, gpu)
    assert rate is not None and rate * 3600 == pytest.approx(dollars_per_hour)


def test_a_gpu_without_a_list_price_has_no_rate() -> None:
    assert prices.rate(1, 1024, "any") is None
    assert prices.rate(1, 1024, "Z9") is None

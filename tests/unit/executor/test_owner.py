"""Whose is a task instance, in an Airflow with several executors and teams?"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.executors import executor_loader
from airflow.executors.executor_loader import ExecutorLoader
from airflow.models.dag import DagModel

from airflow_provider_modal.executors import owner
from airflow_provider_modal.executors.owner import Owner, owner_of, team_with_executor

OURS = "airflow_provider_modal.executors.ModalExecutor"
ON_MODAL = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff/fc-1"


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets ``[core] executor``, and teams of DAGs with the same name."""
    caches = [
        executor_loader._executor_names,
        executor_loader._alias_to_executors_per_team,
        executor_loader._module_to_executors_per_team,
        executor_loader._classname_to_executors_per_team,
        executor_loader._team_name_to_executors,
    ]

    def forget() -> None:
        for cache in caches:
            cache.clear()

    def use(executor: str) -> None:
        forget()
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
        monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", str("=" in executor))

    monkeypatch.setattr(DagModel, "get_team_name", lambda dag_id: dag_id if dag_id != "d" else None)
    # There are no teams in a database.
    monkeypatch.setattr(ExecutorLoader, "_validate_teams_exist_in_database", lambda names: None)
    yield use
    forget()


def ti(executor: str | None = None, external_id: str | None = None, dag: str = "d") -> Any:
    return SimpleNamespace(
        key=SimpleNamespace(dag_id=dag), executor=executor, external_executor_id=external_id
    )


def test_task_without_executor_is_the_defaults(airflow: Any) -> None:
    airflow(f"modal:{OURS},LocalExecutor")
    assert owner_of(ti()) == Owner(None)
    assert owner_of(ti("LocalExecutor")) is None
    airflow(f"LocalExecutor,modal:{OURS}")
    assert owner_of(ti()) is None
    for name in ("modal", OURS, "ModalExecutor"):
        assert owner_of(ti(name)) == Owner(None)
    assert owner_of(ti("unknown")) is None


def test_what_ran_on_modal_is_ours_whatever_is_configured_now(airflow: Any) -> None:
    airflow("LocalExecutor")
    assert owner_of(ti(external_id=ON_MODAL)) == Owner(None)
    assert owner_of(ti(external_id="arn:aws:x/y")) is None


def test_team_has_its_own_environment(airflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    airflow(f"modal:{OURS};science=modal:{OURS};web=LocalExecutor")
    monkeypatch.setenv("AIRFLOW__MODAL__ENVIRONMENT", "prod")
    monkeypatch.setenv("AIRFLOW__SCIENCE___MODAL__ENVIRONMENT", "science-prod")
    found = owner_of(ti("modal", dag="science"))
    assert found == Owner("science") and found == owner_of(ti(dag="science"))
    assert found is not None and found.options().environment == "science-prod"
    assert owner_of(ti(dag="web")) is None
    shared = owner_of(ti("modal", dag="web"))
    assert shared == Owner(None) and shared.options().environment == "prod"
    assert [team_with_executor(dag) for dag in ("science", "web", "d")] == ["science", None, None]


def test_executor_that_is_derived_from_ours_is_ours() -> None:
    assert owner._is_ours("tests.support.recorded_executor.Executor")
    assert not owner._is_ours("tests.support.executors.RecordingExecutor")
    assert not owner._is_ours("airflow.executors.local_executor.LocalExecutor")
    assert not owner._is_ours("no_such_package.Executor")

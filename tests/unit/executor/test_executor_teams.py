"""Airflow makes one executor per team; two of them in one scheduler share nothing."""

from __future__ import annotations

import uuid

import pytest
from airflow.executors.executor_loader import ExecutorLoader
from airflow.executors.executor_utils import ExecutorName

from airflow_provider_modal import config, deployment, names
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.executors.dispatcher import Dispatcher
from airflow_provider_modal.executors.modal_executor import ModalExecutor
from tests.support.recorded_executor import Executor, ended, key, queued, task_instance, workload

CLASS = f"{Executor.__module__}.{Executor.__qualname__}"


@pytest.fixture
def teams(settings: pytest.MonkeyPatch) -> dict[str | None, Executor]:
    """Started executors of one scheduler outside Modal: nobody's, and those of two teams."""
    settings.setenv("AIRFLOW__MODAL__SERVERLESS", "False")
    settings.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    for team in ("alpha", "beta"):
        # Airflow reads nothing of a team's from the section of all.
        settings.setenv(f"AIRFLOW__{team.upper()}___MODAL__ENVIRONMENT", f"prod-{team}")
    settings.setenv("AIRFLOW__ALPHA___MODAL__SUBMIT_CONCURRENCY", "3")
    made: dict[str | None, Executor] = {}
    for team in (None, "alpha", "beta"):
        executor = ExecutorLoader.load_executor(ExecutorName(module_path=CLASS, team_name=team))
        assert isinstance(executor, Executor)
        executor.job_id = 7
        executor.parallelism = 2
        executor.start()
        assert executor._deployed
        # What the deployment manifests say, which are read in the background.
        configured = config.EnvironmentConfig(connection_string="")
        executor._deployed._learn(
            configured, deployment.worker_profiles(configured, executor._deployed.resources)
        )
        made[team] = executor
    return made


def test_each_team_has_its_own_options_and_environment(teams: dict[str | None, Executor]) -> None:
    found = {team: executor._deployed.resources.env for team, executor in teams.items() if executor._deployed}
    assert found == {None: "prod", "alpha": "prod-alpha", "beta": "prod-beta"}
    concurrency = [executor._options.submit_concurrency for executor in teams.values() if executor._options]
    assert concurrency == [32, 3, 32]


def test_teams_share_no_dispatcher_no_partition_and_no_slots(teams: dict[str | None, Executor]) -> None:
    assert len({id(executor.dispatcher) for executor in teams.values()}) == 3
    submissions = {team: queued(executor, workload()) for team, executor in teams.items()}
    partitions = [submission.call.partition for [submission] in submissions.values()]
    assert partitions == ["job-7", "job-7-alpha", "job-7-beta"]
    for executor, partition in zip(teams.values(), partitions, strict=True):
        assert executor.dispatcher.of_kind("listen") == [(partition,)]
    assert [executor.slots_available for executor in teams.values()] == [1, 1, 1]
    [alphas] = submissions["alpha"]
    for executor in teams.values():
        executor.dispatcher.says(ended(alphas.call.dispatch))
        executor.sync()
    assert [executor.slots_available for executor in teams.values()] == [1, 2, 1]
    assert [list(executor.get_event_buffer()) for executor in teams.values()] == [[], [key()], []]


def test_a_team_adopts_from_its_own_former_partition(
    teams: dict[str | None, Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_modal.executors.database.object_session", lambda ti: None)
    left = task_instance(external_executor_id="d1/fc-1", queued_by_job_id=3)
    assert not teams["beta"].try_adopt_task_instances([left])
    assert teams["beta"].dispatcher.of_kind("listen") == [("job-3-beta",)]


def test_a_team_without_an_environment_is_told_so(settings: pytest.MonkeyPatch) -> None:
    settings.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    with pytest.raises(ConfigError, match=r"\[modal\] environment is not set.*team 'gamma'"):
        ModalExecutor(team_name="gamma").start()


def test_a_container_of_another_environment_knows_nothing_of_a_teams(settings: pytest.MonkeyPatch) -> None:
    settings.setenv("MODALFLOW_ENV", "prod")
    settings.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    settings.setenv("AIRFLOW__ALPHA___MODAL__ENVIRONMENT", "other")
    alphas, nobodys = Executor(team_name="alpha"), Executor()
    alphas.start()
    nobodys.start()
    assert isinstance(alphas.dispatcher, Dispatcher)
    assert alphas.dispatcher.of_kind("learn") == [()]
    assert nobodys.dispatcher.of_kind("learn") == []


def test_partitions_fit_modals_limit_and_stay_apart() -> None:
    long = ["t" * 50, "t" * 49 + "u"]
    partitions = [names.job_partition(2**63, team) for team in [None, "alpha", *long]]
    partitions += [names.scheduler_partition(team) for team in [None, "alpha", *long]]
    assert len(set(partitions)) == 8 and all(len(partition) <= 64 for partition in partitions)


def test_without_teams_nothing_of_them_is_in_a_name() -> None:
    assert names.scheduler_partition() == names.SCHEDULER_PARTITION
    job = uuid.uuid4().hex
    assert names.job_partition(job) == f"job-{job}"

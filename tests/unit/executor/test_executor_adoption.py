from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from airflow.utils.state import TaskInstanceState

from airflow_provider_modal.executors import reports
from tests.support.recorded_executor import Executor, ended, key, task_instance


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    # The rows of these tests are not in a database; tests with real rows are among the integration tests.
    monkeypatch.setattr("airflow_provider_modal.executors.database.object_session", lambda ti: None)


@pytest.mark.usefixtures("no_session")
def test_adoption_takes_what_has_a_dispatch_and_asks_about_it(executor: Executor) -> None:
    fresh = task_instance(
        "fresh", external_executor_id="d1/fc-1", last_heartbeat_at=datetime.now(timezone.utc)
    )
    stale = task_instance("stale", external_executor_id="d2/fc-2")
    bare = task_instance("bare", external_executor_id="d3", queued_dttm=datetime.now(timezone.utc))
    nothing = task_instance("nothing")
    late = datetime.now(timezone.utc) - timedelta(seconds=20)
    missing = task_instance("missing", external_executor_id="d4/fc-4", last_heartbeat_at=late)
    assert executor.try_adopt_task_instances([fresh, stale, bare, nothing, missing]) == [nothing]
    assert executor.running == {key("fresh"), key("stale"), key("bare"), key("missing")}
    assert executor.dispatcher.of_kind("ask") == [
        ("d2", "fc-2", True),
        ("d3", None, False),
        ("d4", "fc-4", False),
    ]
    assert executor.dispatcher.of_kind("listen") == []
    executor.dispatcher.says(
        reports.Alive("d4"), ended("d2"), reports.Submitted("d3", "fc-3"), reports.Alive("d3")
    )
    executor.sync()
    assert executor.get_event_buffer() == {
        key("stale"): (TaskInstanceState.SUCCESS, None),
        key("bare"): (TaskInstanceState.QUEUED, "d3/fc-3"),
    }
    assert executor.running == {key("fresh"), key("bare"), key("missing")}
    assert not executor.busy


@pytest.mark.usefixtures("no_session")
def test_elsewhere_the_former_schedulers_partition_is_drained_too(settings: pytest.MonkeyPatch) -> None:
    settings.setenv("AIRFLOW__MODAL__SERVERLESS", "False")
    executor = Executor(parallelism=4)
    executor.job_id = 8
    executor.start()
    executor.try_adopt_task_instances([task_instance(external_executor_id="d1/fc-1", queued_by_job_id=3)])
    executor.sync()
    assert executor.dispatcher.of_kind("listen") == [("job-3",), ("job-8",)]

from __future__ import annotations

from typing import Any

import pytest
from airflow.utils.state import TaskInstanceState

from airflow_provider_modal import wire
from airflow_provider_modal.executors import reports
from tests.support.recorded_executor import Executor, ended, key, queued, task_instance, workload


def test_the_call_id_is_told_once_modal_has_it(executor: Executor) -> None:
    [submission] = queued(executor, workload())
    dispatch = submission.call.dispatch
    executor.dispatcher.says(reports.Submitted(dispatch, "fc-1"))
    assert executor.wait_for_event(0)
    executor.sync()
    assert executor.get_event_buffer() == {key(): (TaskInstanceState.QUEUED, f"{dispatch}/fc-1")}
    assert executor.running == {key()}
    assert not executor.busy and not executor.wait_for_event(0)


def test_no_live_event_is_made_without_an_id(executor: Executor) -> None:
    queued(executor, workload())
    assert executor.get_event_buffer() == {}


@pytest.mark.parametrize(
    ("outcome", "reason", "event"),
    [
        ("done", None, (TaskInstanceState.SUCCESS, None)),
        ("failed", "out of memory", (TaskInstanceState.FAILED, "out of memory")),
    ],
)
def test_an_end_frees_the_slot_and_is_told(
    executor: Executor, outcome: wire.Outcome, reason: str | None, event: tuple[Any, Any]
) -> None:
    [submission] = queued(executor, workload())
    executor.dispatcher.says(ended(submission.call.dispatch, outcome, reason))
    executor.sync()
    assert executor.get_event_buffer() == {key(): event}
    assert (executor.slots_occupied, len(executor.ledger)) == (0, 0)
    # Ends that Airflow is told by us must not cancel what is over.
    assert executor.dispatcher.of_kind("cancel") == []


def test_final_submit_errors_fail_the_task(executor: Executor) -> None:
    [submission] = queued(executor, workload())
    executor.dispatcher.says(reports.NotSubmitted(submission.call.dispatch, "not deployed"))
    executor.sync()
    assert executor.get_event_buffer() == {key(): (TaskInstanceState.FAILED, "not deployed")}
    assert executor.slots_occupied == 0


@pytest.mark.parametrize("runs", [True, False])
def test_a_task_that_runs_outlives_a_submission_without_an_answer(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    monkeypatch.setattr("airflow_provider_modal.executors.database.is_fresh", lambda key, seconds: runs)
    [submission] = queued(executor, workload())
    dispatch = submission.call.dispatch
    executor.dispatcher.says(reports.NotSubmitted(dispatch, "Modal does not answer", doubtful=True))
    executor.sync()
    if runs:
        assert executor.get_event_buffer() == {} and executor.running == {key()}
        executor.dispatcher.says(ended(dispatch))
        executor.sync()
    [(state, _)] = executor.get_event_buffer().values()
    assert state == (TaskInstanceState.SUCCESS if runs else TaskInstanceState.FAILED)
    assert executor.slots_occupied == 0


def test_what_cannot_be_told_frees_the_slot_and_keeps_back_nothing(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    first, second = queued(executor, workload(), workload("u"))
    executor.revoke_task(ti=task_instance("revoked", external_executor_id="d1/fc-9"))
    monkeypatch.setattr(executor._task_events, "note", away)
    executor.dispatcher.says(
        reports.Cancelled("d1"),
        ended(first.call.dispatch, "failed", "out of memory"),
        ended(second.call.dispatch),
    )
    executor.sync()
    assert executor.get_event_buffer() == {
        key(): (TaskInstanceState.FAILED, "out of memory"),
        key("u"): (TaskInstanceState.SUCCESS, None),
    }
    assert executor.slots_occupied == 0


def test_events_of_other_dispatches_are_dropped_and_counted(executor: Executor) -> None:
    [submission] = queued(executor, workload())
    executor.dispatcher.says(ended("somebody-else"))
    executor.sync()
    assert executor.get_event_buffer() == {}
    assert executor.counters["foreign_events"] == 1
    executor.dispatcher.says(
        ended(submission.call.dispatch), ended(submission.call.dispatch, "failed", "late")
    )
    executor.sync()
    assert executor.get_event_buffer() == {key(): (TaskInstanceState.SUCCESS, None)}
    assert executor.counters == {"foreign_events": 1, "repeated_events": 1}


def test_a_second_dispatch_of_the_same_try_outlives_the_end_of_the_first(executor: Executor) -> None:
    # A deferred task comes back under the same key, possibly before the end of its first half is heard of.
    [first] = queued(executor, workload())
    [second] = queued(executor, workload())
    executor.dispatcher.says(ended(first.call.dispatch))
    executor.sync()
    assert executor.get_event_buffer() == {}
    assert executor.running == {key()}
    executor.dispatcher.says(ended(second.call.dispatch))
    executor.sync()
    assert executor.slots_occupied == 0
    assert list(executor.get_event_buffer()) == [key()]


def test_a_revoked_task_is_forgotten_and_cancelled_without_an_event(executor: Executor) -> None:
    [submission] = queued(executor, workload())
    dispatch = submission.call.dispatch
    executor.dispatcher.says(reports.Submitted(dispatch, "fc-1"))
    executor.sync()
    executor.get_event_buffer()
    executor.revoke_task(ti=task_instance(external_executor_id=f"{dispatch}/fc-1"))
    executor.dispatcher.says(ended(dispatch, "failed", "cancelled"))
    executor.sync()
    assert executor.dispatcher.of_kind("cancel") == [(dispatch, "fc-1")]
    assert executor.get_event_buffer() == {}
    executor.dispatcher.says(reports.Cancelled(dispatch), reports.Cancelled("somebody-else"))
    executor.sync()
    assert [(event, of, text.partition(":")[0]) for event, of, text in executor.events] == [
        ("modal call submitted", key(), "function call fc-1"),
        ("modal call cancelled", key(), f"{dispatch}/fc-1 in prod"),
        ("modal call ended", key(), f"{dispatch} in prod"),
    ]
    assert executor.slots_occupied == 0


def test_a_revoked_task_that_is_not_under_way_is_cancelled_by_its_id(executor: Executor) -> None:
    executor.revoke_task(ti=task_instance(external_executor_id="d1/fc-9"))
    assert executor.dispatcher.of_kind("cancel") == [("d1", "fc-9")]


def test_a_task_that_the_scheduler_gave_up_is_cancelled(executor: Executor) -> None:
    [submission] = queued(executor, workload())
    executor.change_state(key(), TaskInstanceState.FAILED)  # as for a missing heartbeat
    assert executor.dispatcher.of_kind("cancel") == [(submission.call.dispatch, None)]
    assert (executor.slots_occupied, len(executor.ledger)) == (0, 0)
    (state, reason) = executor.get_event_buffer()[key()]
    assert state == TaskInstanceState.FAILED
    assert "without a heartbeat" in str(reason)


def test_what_happened_is_told_at_the_task_instance(executor: Executor) -> None:
    [submission] = queued(executor, workload())
    dispatch = submission.call.dispatch
    told_by_worker = reports.Ended.told(
        wire.Completion(dispatch, submission.call.key, "failed", "timeout: 5 s\0", lost_container="ta-1")
    )
    executor.dispatcher.says(reports.Submitted(dispatch, "fc-1"), told_by_worker)
    executor.sync()
    assert executor.events == [
        ("modal call submitted", key(), "function call fc-1"),
        ("modal call delivered again", key(), "container ta-1 had the function call before and was lost"),
        ("modal task failed", key(), "timeout: 5 s\N{REPLACEMENT CHARACTER}"),
    ]
    assert executor.dispatcher.of_kind("explain") == [], "the worker has written it into the log"


def test_a_reason_that_no_worker_knows_goes_into_the_log(executor: Executor) -> None:
    [submission] = queued(executor, workload())
    dispatch = submission.call.dispatch
    executor.dispatcher.says(reports.NotSubmitted(dispatch, "not deployed"))
    executor.sync()
    executor.queue_workload(workload("wrong", queue="gpuu"), session=None)  # type: ignore[arg-type]
    [explained, refused] = executor.dispatcher.of_kind("explain")
    assert explained == (submission.call.key, dispatch, "not deployed")
    assert refused[0].task_id == "wrong" and "gpuu" in refused[2]
    assert [event for event, _, _ in executor.events] == ["modal task failed"] * 2

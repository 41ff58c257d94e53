from __future__ import annotations

import uuid

import pytest
from airflow.executors.workloads import ExecuteCallback
from airflow.models.callback import CallbackKey
from airflow.utils.state import CallbackState

from airflow_provider_modal import names, wire
from airflow_provider_modal.executors import reports
from tests.support.recorded_executor import Executor, callback, connection_test, queued, workload


def test_a_callback_is_dispatched_under_its_own_id(executor: Executor) -> None:
    item = callback()
    [submission] = queued(executor, item)
    call = wire.TaskCall.from_wire(submission.call.to_wire())
    assert (call.kind, call.dispatch, call.key) == ("callback", item.callback.id, None)
    assert (submission.function, call.log_path) == (names.EXECUTE_TASK, "executor_callbacks/d/r/c")
    assert ExecuteCallback.model_validate_json(call.workload).callback == item.callback
    executor.dispatcher.says(reports.Submitted(call.dispatch, "fc-1"))
    executor.sync()
    # It has no place for the call's id.
    assert executor.get_event_buffer() == {} and executor.running == {item.key}
    executor.dispatcher.says(reports.Ended(call.dispatch, "failed", "it raised", "callback"))
    executor.sync()
    assert executor.get_event_buffer() == {item.key: (CallbackState.FAILED, "it raised")}
    assert executor.slots_occupied == 0


def test_callbacks_go_before_tasks(executor: Executor) -> None:
    late, *tasks = callback(), *(workload(f"t{n}") for n in range(5))
    submissions = queued(executor, *tasks, late)
    assert len(submissions) == 4 and submissions[0].call.kind == "callback"


def test_the_end_of_a_callback_that_another_scheduler_began_is_told(executor: Executor) -> None:
    done, failed, copy = (str(uuid.uuid4()) for _ in range(3))
    executor.dispatcher.says(
        reports.Ended(done, "done", None, "callback"),
        reports.Ended(failed, "failed", "it raised", "callback"),
        reports.Ended(copy, "obsolete", "another one runs it", "callback"),
        reports.Ended(str(uuid.uuid4()), "done", None, "connection_test"),
    )
    executor.sync()
    assert executor.get_event_buffer() == {
        CallbackKey(done): (CallbackState.SUCCESS, None),
        CallbackKey(failed): (CallbackState.FAILED, "it raised"),
    }
    assert executor.counters["foreign_events"] == 2


def test_callbacks_under_way_are_adopted_and_what_never_reached_modal_is_returned(
    executor: Executor,
) -> None:
    alive, ended, never, lost = executor.open_callbacks = [str(uuid.uuid4()) for _ in range(4)]
    executor.sync()
    assert [order[0] for order in executor.dispatcher.of_kind("ask")] == executor.open_callbacks
    assert executor.slots_occupied == 4 and executor.busy
    executor.dispatcher.says(
        reports.Alive(alive),
        reports.Ended(ended, "done", None),
        reports.Unknown(never, "it never reached Modal", lost=False),
        reports.Unknown(lost, "Modal has no function call fc-1"),
    )
    executor.sync()
    events = executor.get_event_buffer()
    assert events.pop(CallbackKey(ended)) == (CallbackState.SUCCESS, None)
    state, reason = events.pop(CallbackKey(lost))
    assert state == CallbackState.FAILED and "fc-1" in reason
    assert not events and executor.returned == [never]
    assert executor.running == {CallbackKey(alive)}


def test_a_connection_test_runs_in_its_queue_and_frees_its_slot(executor: Executor) -> None:
    item = connection_test(queue="gpu")
    [submission] = queued(executor, item)
    assert (submission.function, submission.call.kind) == ("execute_task_gpu", "connection_test")
    executor.dispatcher.says(reports.Ended(submission.call.dispatch, "done", None, "connection_test"))
    executor.sync()
    assert executor.slots_occupied == 0 and executor.failed_tests == []


def test_why_a_connection_could_not_be_tested_is_written(executor: Executor) -> None:
    wrong, unlucky = connection_test(queue="gqu"), connection_test()
    [submission] = queued(executor, wrong, unlucky)
    executor.dispatcher.says(reports.NotSubmitted(submission.call.dispatch, "not deployed"))
    executor.sync()
    (of_wrong, told), (of_unlucky, said) = executor.failed_tests
    assert (of_wrong, of_unlucky) == (wrong.key.id, unlucky.key.id)
    assert "did you mean 'gpu'" in told and said == "not deployed"
    assert executor.slots_occupied == 0


def test_a_second_delivery_of_a_callback_does_not_end_the_first(executor: Executor) -> None:
    item = callback()
    [submission] = queued(executor, item)
    dispatch = submission.call.dispatch
    executor.dispatcher.says(reports.Ended(dispatch, "obsolete", "another one runs it", "callback"))
    executor.sync()
    assert executor.get_event_buffer() == {} and executor.running == {item.key}
    executor.dispatcher.says(reports.Ended(dispatch, "done", None, "callback"))
    executor.sync()
    assert executor.get_event_buffer() == {item.key: (CallbackState.SUCCESS, None)}


def test_a_database_that_is_away_keeps_no_slot(executor: Executor, settings: pytest.MonkeyPatch) -> None:
    def away(test_id: str, reason: str) -> None:
        raise OSError("the database is away")

    settings.setattr("airflow_provider_modal.executors.database.fail_connection_test", away)
    wrong, unlucky = connection_test(queue="gqu"), connection_test()
    [submission] = queued(executor, wrong, unlucky)
    executor.dispatcher.says(reports.NotSubmitted(submission.call.dispatch, "not deployed"))
    executor.sync()
    assert executor.slots_occupied == 0 and len(executor.ledger) == 0


def test_a_connection_test_that_airflow_gave_up_is_cancelled(executor: Executor) -> None:
    item = connection_test()
    [submission] = queued(executor, item)
    executor.fail_connection_test(item.key)
    assert executor.dispatcher.of_kind("cancel") == [(submission.call.dispatch, None)]
    assert executor.slots_occupied == 0 and executor.events == []

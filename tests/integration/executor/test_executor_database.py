from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any, ClassVar

import psycopg2
import pytest
from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_provider_modal.executors import cancelling
from airflow_provider_modal.executors.options import Options
from airflow_provider_modal.executors.reports import Alive, Cancelled, Ended, Submitted, Unknown
from airflow_provider_modal.scheduler import due
from local_modal.testing import wait_until
from tests.support.task_rows import Rows

KEY = TaskInstanceKey("d", "t", "r", 1, -1)
MISSING = ("state", "queued_dttm", "queued_by_job_id", "external_executor_id")


def settle(*, lost: bool = True) -> str:
    from airflow_provider_modal.executors import database

    return database.settle(KEY, "d1", "Modal does not know it", lost=lost)


@pytest.mark.parametrize("external_id", ["d1", "d1/fc-1"])
def test_a_lost_dispatch_is_queued_again_in_the_same_try(rows: Rows, external_id: str) -> None:
    rows.task("queued", external_id)
    identity = rows.now("id", "try_number")
    assert settle() == "requeued"
    assert rows.now(*MISSING) == ("scheduled", None, None, None)
    assert rows.now("id", "try_number") == identity
    [(event, extra)] = rows.run("SELECT event, extra FROM log")
    assert (event, extra) == ("modal dispatch lost", "queued again: Modal does not know it")


@pytest.mark.parametrize(
    ("state", "external_id", "found"),
    [
        ("running", "d1/fc-1", "running"),
        ("restarting", "d1", "running"),
        ("success", "d1/fc-1", "over"),
        ("deferred", "d1/fc-1", "over"),
        ("queued", "d2", "over"),
        ("queued", None, "over"),
    ],
)
def test_what_is_not_lost_is_left_alone(rows: Rows, state: str, external_id: str | None, found: str) -> None:
    rows.task(state, external_id)
    assert settle() == found
    assert rows.now("state", "external_executor_id") == (state, external_id)


def test_a_later_try_and_a_deleted_task_are_not_ours(rows: Rows) -> None:
    assert settle() == "over"
    rows.task("queued", "d1", try_number=2)
    assert settle() == "over"


def test_a_row_that_somebody_holds_is_not_waited_for(rows: Rows) -> None:
    rows.task("queued", "d1")
    rows.run("BEGIN")
    rows.run("SELECT 1 FROM task_instance FOR UPDATE")
    assert settle() == "running"
    rows.run("COMMIT")
    assert settle() == "requeued"


def test_repetitions_are_bounded(rows: Rows) -> None:
    rows.task("queued", "d1")
    found = []
    for _ in range(4):
        found.append(settle())
        rows.run("UPDATE task_instance SET state = 'queued', external_executor_id = 'd1'")
    assert found == ["requeued", "requeued", "requeued", "exhausted"]


def test_what_modal_never_took_is_queued_again_for_as_long_as_it_takes(rows: Rows) -> None:
    rows.task("queued", "d1")
    found = []
    for lost in (False, True, False, False, False, False, True):
        found.append(settle(lost=lost))
        rows.run("UPDATE task_instance SET state = 'queued', external_executor_id = 'd1'")
    assert found == ["requeued"] * 7
    assert rows.run("SELECT event, count(*) FROM log GROUP BY event ORDER BY event") == [
        ("modal dispatch lost", 2),
        ("modal dispatch returned", 5),
    ]


def test_live_is_what_airflow_waits_for_and_fresh_what_had_a_heartbeat(rows: Rows) -> None:
    from airflow_provider_modal.executors import database

    now = datetime.now(timezone.utc)
    rows.task("running", "d1/fc-1", last_heartbeat_at=now - timedelta(seconds=5))
    rows.task("running", "d2/fc-2", task_id="stale", last_heartbeat_at=now - timedelta(seconds=90))
    rows.task("queued", "d3/fc-3", task_id="waits", last_heartbeat_at=now)
    rows.task("running", "d4/fc-4", task_id="foreign", last_heartbeat_at=now, queued_by_job_id=None)
    for task_id, state in {"ended": "success", "deferred": "deferred", "cleared": None}.items():
        rows.task(state, "d5/fc-5", task_id=task_id, last_heartbeat_at=now)
    found = {key.task_id: task for key, task in database.live(60).items()}
    assert found == {
        "t": database.Live(1, "d1", True),
        "stale": database.Live(1, "d2", False),
        "waits": database.Live(1, "d3", False),
        "foreign": database.Live(None, "d4", True),
    }
    fresh = [
        task_id
        for task_id in ("t", "stale", "waits", "ended", "deleted")
        if database.is_fresh(TaskInstanceKey("d", task_id, "r", 1, -1), 60)
    ]
    assert fresh == ["t"]
    assert not database.is_fresh(TaskInstanceKey("d", "t", "r", 2, -1), 60), "another try"


class Adopting:
    """An executor whose dispatcher records its orders, and the real scheduler's adoption over it."""

    made: ClassVar[list[Adopting]] = []

    def __init__(self) -> None:
        from airflow.jobs.job import Job, JobState
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
        from airflow.utils.session import create_session

        from airflow_provider_modal.executors import ModalExecutor

        self.orders: list[tuple[Any, ...]] = []
        self.executor = ModalExecutor(parallelism=4)
        Adopting.made.append(self)
        self.dispatcher = SimpleNamespace(
            ask=lambda question: self.orders.append((question.dispatch, question.call_id, question.modal)),
            cancel=lambda dispatch, call_id, why: self.orders.append(("cancel", dispatch, call_id)),
            finish_cancel=lambda *order: self.orders.append(("finish", *order)),
            explain=lambda key, dispatch, reason: self.orders.append(("explain", dispatch)),
            has_reports=False,
        )
        self.runner = SchedulerJobRunner(Job(), executors=[self.executor])
        with create_session() as session:
            self.runner.job.state = JobState.RUNNING
            self.runner.job.latest_heartbeat = datetime.now(timezone.utc)
            session.add(self.runner.job)
            session.flush()
            self.executor.job_id = self.runner.job.id
        self.be(environment="prod")

    def be(self, environment: str) -> None:
        options = Options(environment, serverless=True)
        self.executor._use(self.dispatcher, options)  # type: ignore[arg-type]

    def take_over(self) -> None:
        self.executor._cancellations.take_over(self.executor._dispatcher)

    def adopt(self) -> int:
        reset: int = self.runner.adopt_or_reset_orphaned_tasks()
        return reset

    def process(self) -> None:
        from airflow.utils.session import create_session

        with create_session() as session:
            self.runner._process_executor_events(executor=self.executor, session=session)


@pytest.fixture
def adopting(rows: Rows) -> Iterator[Adopting]:
    yield Adopting()
    while Adopting.made:
        # What it writes in the background must not be found by the next test.
        Adopting.made.pop().executor._task_events.close(30)


@pytest.mark.parametrize(
    ("seconds", "orders"),
    [(5, []), (30, [("d1", "fc-1", False)]), (90, [("d1", "fc-1", True)])],
)
def test_the_scheduler_adopts_by_the_external_id(
    rows: Rows, adopting: Adopting, seconds: int, orders: list[tuple[Any, ...]]
) -> None:
    sign = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    rows.task("running", "d1/fc-1", last_heartbeat_at=sign, queued_dttm=sign)
    assert adopting.adopt() == 0
    assert rows.now("state", "queued_by_job_id", "external_executor_id") == (
        "running",
        adopting.executor.job_id,
        "d1/fc-1",
    )
    assert adopting.orders == orders
    assert adopting.executor.running == {KEY}


def test_the_scheduler_resets_what_has_no_dispatch(rows: Rows, adopting: Adopting) -> None:
    rows.task("queued", None)
    assert adopting.adopt() == 1
    assert rows.now("state") == (None,)
    assert adopting.executor.slots_occupied == 0


def test_a_dispatch_that_never_reached_modal_goes_back_to_the_scheduler(
    rows: Rows, adopting: Adopting
) -> None:
    rows.task("queued", "d1")
    adopting.adopt()
    assert adopting.executor.busy
    adopting.executor._outcomes.apply([Unknown("d1", "it never reached Modal", lost=False)])
    assert rows.now("state") == ("scheduled",)
    assert rows.run("SELECT event FROM log") == [("modal dispatch returned",)]
    assert adopting.executor.slots_occupied == 0
    assert adopting.executor.get_event_buffer() == {}
    assert not adopting.executor.busy


def test_a_call_that_was_noted_only_in_the_dict_is_written_into_the_row(
    rows: Rows, adopting: Adopting
) -> None:
    rows.task("queued", "d1")
    adopting.adopt()
    adopting.executor._outcomes.apply([Submitted("d1", "fc-1"), Alive("d1")])
    adopting.process()
    assert rows.now("state", "external_executor_id") == ("queued", "d1/fc-1")


def test_a_failure_of_the_infrastructure_reaches_the_user(rows: Rows, adopting: Adopting) -> None:
    rows.task("running", "d1/fc-1", last_heartbeat_at=datetime.now(timezone.utc))
    adopting.adopt()
    adopting.executor._outcomes.apply([Ended("d1", "failed", "out of memory: set memory")])
    adopting.process()
    assert rows.now("state") == ("failed",)
    [(extra,)] = rows.run("SELECT extra FROM log WHERE event = 'state mismatch'")
    assert extra.endswith("Extra info: out of memory: set memory")


@pytest.mark.parametrize(("state", "left"), [("running", "running"), ("queued", "scheduled")])
def test_an_obsolete_copy_frees_its_slot_and_never_fails_the_task(
    rows: Rows, adopting: Adopting, state: str, left: str
) -> None:
    rows.task(state, "d1/fc-1", last_heartbeat_at=datetime.now(timezone.utc))
    adopting.adopt()
    adopting.executor._outcomes.apply([Ended("d1", "obsolete")])
    adopting.process()
    assert rows.now("state") == (left,)
    assert adopting.executor.get_event_buffer() == {}


def test_of_two_calls_of_one_dispatch_the_loser_does_not_fail_the_task(
    rows: Rows, adopting: Adopting
) -> None:
    rows.task("queued", "d1")
    adopting.adopt()
    adopting.executor._outcomes.apply([Submitted("d1", "fc-2", doubtful=True)])
    # Modal had started fc-1 as well, whose id nobody heard; it runs.
    rows.run("UPDATE task_instance SET state = 'running', last_heartbeat_at = now()")
    adopting.executor._outcomes.apply([Ended("d1", "failed", "the container was lost")])
    adopting.process()
    assert rows.now("state") == ("running",)
    assert adopting.executor.running == {KEY}
    adopting.executor._outcomes.apply([Ended("d1", "done")])
    assert adopting.executor.slots_occupied == 0


def test_a_task_without_heartbeats_is_failed_by_the_scheduler_and_cancelled_by_us(
    rows: Rows, adopting: Adopting
) -> None:
    rows.task("running", "d1/fc-1", last_heartbeat_at=datetime.now(timezone.utc))
    adopting.adopt()
    adopting.executor.change_state(KEY, "failed")
    adopting.process()
    assert ("cancel", "d1", "fc-1") in adopting.orders
    assert adopting.executor.slots_occupied == 0


def is_due(rows: Rows) -> bool:
    """Whether a serverless scheduler would start because of a cancellation."""
    with contextlib.closing(psycopg2.connect(rows.url)) as connection:
        findings = due.check(connection, due.Settings(), since=None)
    return "a cancelled call may not have ended" in findings.reasons


def test_a_cancellation_is_finished_by_the_next_scheduler_and_by_no_other(
    rows: Rows, adopting: Adopting
) -> None:
    rows.task("queued", "d1/fc-1")
    adopting.adopt()
    revoked = SimpleNamespace(key=KEY, external_executor_id="d1/fc-1")
    adopting.executor.revoke_task(ti=revoked)  # type: ignore[arg-type]
    assert adopting.orders[-1] == ("cancel", "d1", "fc-1")
    adopting.executor._task_events.flush(30)
    assert not is_due(rows), "whoever began it sees to it"
    rows.run("UPDATE log SET dttm = dttm - interval '25 seconds'")

    elsewhere = Adopting()
    elsewhere.be(environment="prod-2")
    elsewhere.take_over()
    assert elsewhere.orders == [], "its Dict knows nothing of the call"
    successor = Adopting()
    successor.take_over()
    [(order, dispatch, call_id, seconds)] = successor.orders
    assert (order, dispatch, call_id) == ("finish", "d1", "fc-1")
    assert 0 <= seconds <= cancelling.GRACE - 24
    # It knows already when the adoption of something else makes it look again.
    successor.take_over()
    assert len(successor.orders) == 1
    rows.run("UPDATE log SET dttm = dttm - interval '25 seconds'")
    assert is_due(rows)

    successor.executor._outcomes.apply([Cancelled("d1")])
    successor.executor._task_events.flush(30)
    third = Adopting()
    third.take_over()
    assert third.orders == []
    assert [event for (event,) in rows.run("SELECT event FROM log ORDER BY dttm")] == [
        "modal call cancelled",
        "modal call ended",
    ]
    assert not is_due(rows)


def test_a_cancellation_of_long_ago_is_left_alone(rows: Rows, adopting: Adopting) -> None:
    adopting.executor.revoke_task(ti=SimpleNamespace(key=KEY, external_executor_id="d1"))  # type: ignore[arg-type]
    adopting.executor._task_events.flush(30)
    rows.run("UPDATE log SET dttm = dttm - interval '2 hours'")
    successor = Adopting()
    successor.take_over()
    assert successor.orders == []


def test_a_callback_goes_from_the_scheduler_to_modal_and_back(rows: Rows, adopting: Adopting) -> None:
    from airflow.utils.session import create_session

    callback_id = rows.callback("pending")
    executor = adopting.executor
    executor.__dict__["jwt_generator"] = None  # no API server, no tokens
    with create_session() as session:
        adopting.runner._enqueue_executor_callbacks(session)
    assert [str(key) for key in executor.queued_callbacks] == [callback_id]
    assert rows.run("SELECT state FROM callback") == [("queued",)]
    # What is queued here is not adopted as well.
    executor._adoption.callbacks(executor.queued_callbacks.__contains__)
    assert adopting.orders == []
    executor._outcomes.apply([Ended(callback_id, "failed", "it raised", "callback")])
    adopting.process()
    assert rows.run("SELECT state, output FROM callback") == [("failed", "it raised")]


def test_callbacks_of_a_scheduler_that_is_gone_are_asked_about(rows: Rows, adopting: Adopting) -> None:
    queued, running = rows.callback("queued"), rows.callback("running")
    for state in ("pending", "success", "failed"):
        rows.callback(state)
    adopting.executor._adoption.callbacks(adopting.executor.queued_callbacks.__contains__)
    assert sorted(adopting.orders) == sorted([(queued, None, True), (running, None, True)])
    adopting.executor._outcomes.apply(
        [
            Unknown(queued, "it never reached Modal", lost=False),
            Ended(running, "done"),
        ]
    )
    adopting.process()
    assert rows.run("SELECT state FROM callback WHERE id = %s", queued) == [("pending",)]
    assert rows.run("SELECT state FROM callback WHERE id = %s", running) == [("success",)]
    assert adopting.executor.slots_occupied == 0


def test_elsewhere_callbacks_may_be_another_executors(rows: Rows, adopting: Adopting) -> None:
    rows.callback("queued")
    adopting.executor._use(adopting.dispatcher, Options(serverless=False))  # type: ignore[arg-type]
    adopting.executor._adoption.callbacks(adopting.executor.queued_callbacks.__contains__)
    assert adopting.orders == []


def test_why_a_connection_could_not_be_tested_is_told_once(rows: Rows) -> None:
    from airflow.models.connection_test import ConnectionTestRequest
    from airflow.utils.session import create_session

    from airflow_provider_modal.executors import database

    with create_session() as session:
        test = ConnectionTestRequest(connection_id="c", conn_type="fs")
        session.add(test)
        session.flush()
        test_id = str(test.id)
    database.fail_connection_test(test_id, "not deployed")
    database.fail_connection_test(test_id, "too late")
    database.fail_connection_test(str(uuid.uuid4()), "unknown")
    assert rows.run("SELECT state, result_message, active_connection_id FROM connection_test_request") == [
        ("failed", "not deployed", None)
    ]


def test_slots_are_compared_with_the_database(rows: Rows) -> None:
    from airflow_provider_modal.executors import database, slots

    assert database.in_progress(1) == []
    rows.task("running", "d1/fc-1")
    assert database.in_progress(1) == [(KEY, True)]
    assert database.in_progress(2) == [], "another scheduler's"
    elsewhere = KEY._replace(task_id="elsewhere")
    for keys, others, progress, drift in [
        ({KEY}, (), [(KEY, True)], 0),
        ({KEY}, (), [(KEY, False), (elsewhere, False)], 0),  # queued here; another kind of executor's
        ({KEY}, {elsewhere}, [(KEY, True), (elsewhere, True)], 0),
        ({KEY}, (), [], 1),
        ((), (), [(KEY, True)], -1),
    ]:
        assert slots.drift(keys, others, progress) == drift


def test_slots_of_two_executors_of_a_scheduler_do_not_drift(rows: Rows) -> None:
    from airflow_provider_modal.executors import slots

    class Gauge:
        def __init__(self) -> None:
            self.values: list[int] = []

        def gauge(self, name: str, value: int) -> None:
            self.values.append(value)

    rows.task("running", "d1/fc-1")
    rows.task("running", "d2/fc-2", map_index=1)
    gauges = [Gauge(), Gauge()]
    second = KEY._replace(map_index=1)
    drifts = [
        slots.SlotDrift(1, lambda key=key: [key], gauge, every=-1.0)  # type: ignore[arg-type,misc]
        for key, gauge in zip((KEY, second), gauges, strict=True)
    ]
    for drift in drifts:
        drift.look()
    wait_until(lambda: all(gauge.values for gauge in gauges))
    assert [gauge.values for gauge in gauges] == [[0], [0]]
    for drift in drifts:
        drift.close()

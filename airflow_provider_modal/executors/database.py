"""What does Airflow's database say about dispatches that the executor is unsure of?

The database is the truth about task instances; every statement that is ours about them is here. Called on
the scheduler's thread, a few milliseconds each; the session is committed or rolled back on return.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from airflow.models.callback import Callback, CallbackType
from airflow.models.connection_test import ACTIVE_STATES, ConnectionTestRequest, ConnectionTestState
from airflow.models.log import Log
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.session import create_session
from airflow.utils.state import CallbackState, TaskInstanceState
from sqlalchemy import func, select, update
from sqlalchemy.orm import load_only, object_session

from airflow_provider_modal.wire import is_call_id, parse_external_executor_id

if TYPE_CHECKING:
    from sqlalchemy.orm import Session
    from sqlalchemy.sql import ColumnElement

    from airflow_provider_modal.executors.task_events import TaskEvent

LOST_EVENT = "modal dispatch lost"
"""Event in Airflow's log table, one per repetition; they are counted there because schedulers come and go."""
RETURNED_EVENT = "modal dispatch returned"
"""A dispatch that Modal never took: the same, but nothing was lost, so nothing is counted."""
MOST_REQUEUES = 3
CANCELLED_EVENT = "modal call cancelled"
"""A function call is being cancelled; the text is ``{external executor id} in {environment}: {why}``."""
ENDED_EVENT = "modal call ended"
"""The cancelled call is over; the text is ``{dispatch} in {environment}: ...``."""

_RUNNING = (TaskInstanceState.RUNNING, TaskInstanceState.RESTARTING)

Settlement = Literal["requeued", "exhausted", "running", "over"]
"""What ``settle`` found. ``requeued``: it waits for the scheduler again. ``exhausted``: it was queued again
too often already. ``running``: Airflow has it running, or somebody is working on it at the moment. ``over``:
the dispatch is not the task instance's any more, or the task instance is in a state of its own."""


@dataclass(frozen=True)
class Live:
    """A task instance that Airflow waits for.

    :param job_id: the scheduler that it belongs to.
    :param dispatch: its current one; None before Airflow has heard of any.
    :param fresh: it runs, and had a heartbeat lately.
    """

    job_id: int | None
    dispatch: str | None
    fresh: bool


def live(seconds: float) -> dict[TaskInstanceKey, Live]:
    """Return the task instances, of all schedulers, that are queued or running.

    :param seconds: how old the last heartbeat of a fresh one may be.
    """
    statement = select(
        TaskInstance.dag_id,
        TaskInstance.task_id,
        TaskInstance.run_id,
        TaskInstance.try_number,
        TaskInstance.map_index,
        TaskInstance.queued_by_job_id,
        TaskInstance.external_executor_id,
        _is_fresh(seconds),
    ).where(TaskInstance.state.in_((TaskInstanceState.QUEUED, *_RUNNING)))
    with create_session() as session:
        return {
            TaskInstanceKey(*key): Live(job_id, parse_external_executor_id(external_id)[0], bool(is_fresh))
            for *key, job_id, external_id, is_fresh in session.execute(statement)
        }


def is_fresh(key: TaskInstanceKey, seconds: float) -> bool:
    """Whether a task instance's try runs and had a heartbeat in the last ``seconds``."""
    statement = select(_is_fresh(seconds)).where(_is(key), TaskInstance.try_number == key.try_number)
    with create_session() as session:
        return bool(session.scalar(statement))


def in_progress(job_id: int | str | None) -> list[tuple[TaskInstanceKey, bool]]:
    """Return the task instances that a scheduler has queued or running, of all its executors, and whether
    Modal has a function call of them."""
    statement = select(
        TaskInstance.dag_id,
        TaskInstance.task_id,
        TaskInstance.run_id,
        TaskInstance.try_number,
        TaskInstance.map_index,
        TaskInstance.external_executor_id,
    ).where(
        TaskInstance.queued_by_job_id == job_id,
        TaskInstance.state.in_((TaskInstanceState.QUEUED, *_RUNNING)),
    )
    with create_session() as session:
        return [
            (TaskInstanceKey(*key), is_call_id(parse_external_executor_id(external_id)[1]))
            for *key, external_id in session.execute(statement)
        ]


def settle(key: TaskInstanceKey, dispatch: str, why: str, *, lost: bool = True) -> Settlement:
    """Hand a dispatch that nobody will run back to the scheduler, if Airflow still waits for it.

    The task instance goes from ``queued`` to ``scheduled``, as Airflow does with tasks stuck in ``queued``:
    the same try, so it costs the user none. Should the dispatch's function call turn up after all, Airflow's
    compare-and-set lets only one of the two run.

    :param why: for Airflow's event log.
    :param lost: Modal had it, and lost it: that must not go on for ever. What Modal refused to take is queued
        again for as long as it does.
    """
    with create_session() as session:
        row = session.execute(
            select(TaskInstance.state, TaskInstance.external_executor_id, TaskInstance.try_number)
            .where(_is(key))
            # A row that somebody else has locked is changing: it counts as running and is looked at again.
            .with_for_update(skip_locked=True)
        ).first()
        if row is None:
            exists = session.scalar(select(func.count()).select_from(TaskInstance).where(_is(key)))
            return "running" if exists else "over"
        state, external_id, try_number = row
        if try_number != key.try_number or parse_external_executor_id(external_id)[0] != dispatch:
            return "over"
        if state in _RUNNING:
            return "running"
        if state != TaskInstanceState.QUEUED:
            return "over"
        if lost and _losses(session, key) >= MOST_REQUEUES:
            return "exhausted"
        session.execute(
            update(TaskInstance)
            .where(_is(key))
            .values(
                state=TaskInstanceState.SCHEDULED,
                queued_dttm=None,
                queued_by_job_id=None,
                external_executor_id=None,
                scheduled_dttm=datetime.now(timezone.utc),
            )
            .execution_options(synchronize_session=False)
        )
        event = LOST_EVENT if lost else RETURNED_EVENT
        session.add(Log(event=event, task_instance=key, extra=f"queued again: {why}"))
        return "requeued"


@dataclass(frozen=True)
class Cancellation:
    """A function call that somebody began to cancel.

    :param environment: the one that it is in: only there its id is known, should it be missing here.
    :param at: when, in seconds since the epoch.
    """

    key: TaskInstanceKey
    dispatch: str
    call_id: str | None
    environment: str
    at: float


def open_cancellations(seconds: float) -> list[Cancellation]:
    """Return the cancellations of the last ``seconds`` whose end nobody has noted, oldest first."""
    since = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    statement = (
        select(
            Log.event,
            Log.extra,
            Log.dttm,
            Log.dag_id,
            Log.task_id,
            Log.run_id,
            Log.try_number,
            Log.map_index,
        )
        .where(Log.event.in_((CANCELLED_EVENT, ENDED_EVENT)), Log.dttm > since)
        .order_by(Log.dttm)
    )
    found: dict[str, Cancellation] = {}
    with create_session() as session:
        for event, extra, at, *key in session.execute(statement):
            external_id, _, environment = (extra or "").partition(":")[0].partition(" in ")
            dispatch, call_id = parse_external_executor_id(external_id)
            if dispatch is None:
                continue
            if event == CANCELLED_EVENT:
                found[dispatch] = Cancellation(
                    TaskInstanceKey(*key), dispatch, call_id, environment, at.timestamp()
                )
            else:
                found.pop(dispatch, None)
    return list(found.values())


def write_events(events: Sequence[TaskEvent]) -> None:
    """Add events to Airflow's log table."""
    rows = []
    for event in events:
        rows.append(Log(event=event.event, task_instance=event.key, extra=event.text))
        rows[-1].dttm = event.at
    with create_session() as session:
        session.add_all(rows)


def open_callbacks() -> list[str]:
    """Return the ids of all callbacks that an executor took and whose end Airflow has not heard of."""
    statement = select(Callback.id).where(
        Callback.type == CallbackType.EXECUTOR,
        Callback.state.in_((CallbackState.QUEUED, CallbackState.RUNNING)),
    )
    with create_session() as session:
        return [str(callback_id) for callback_id in session.scalars(statement)]


def return_callback(callback_id: str) -> None:
    """Have the scheduler queue a callback again that nobody runs."""
    with create_session() as session:
        session.execute(
            update(Callback)
            .where(Callback.id == UUID(callback_id), Callback.state == CallbackState.QUEUED)
            .values(state=CallbackState.PENDING)
            .execution_options(synchronize_session=False)
        )


def fail_connection_test(test_id: str, reason: str) -> None:
    """Write that a connection could not be tested; Airflow doesn't read an executor's events about tests."""
    with create_session() as session:
        test = session.get(ConnectionTestRequest, UUID(test_id), with_for_update={"skip_locked": True})
        if test is not None and test.state in ACTIVE_STATES:
            test.state = ConnectionTestState.FAILED
            test.result_message = reason[:2000]


def load_signs(tis: Sequence[TaskInstance]) -> None:
    """Load what adoption needs to know of ``tis`` in one statement; Airflow loads less than that itself."""
    session = object_session(tis[0]) if tis else None
    if session is None:
        return
    statement = (
        select(TaskInstance)
        .where(TaskInstance.id.in_([ti.id for ti in tis]))
        .options(
            load_only(
                TaskInstance.try_number,
                TaskInstance.last_heartbeat_at,
                TaskInstance.queued_dttm,
                TaskInstance.queued_by_job_id,
                TaskInstance.queue,
            )
        )
    )
    session.scalars(statement).all()


def last_sign(ti: TaskInstance) -> float:
    """Return when the database last heard of a task instance, in seconds since the epoch; 0 for never."""
    times = [ti.last_heartbeat_at, ti.queued_dttm]
    return max((time.timestamp() for time in times if time is not None), default=0.0)


def queued_at(ti: TaskInstance) -> float | None:
    """Return when a task instance was queued, in seconds since the epoch; None if it does not say."""
    return ti.queued_dttm.timestamp() if ti.queued_dttm is not None else None


def _is_fresh(seconds: float) -> ColumnElement[bool]:
    since = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    return TaskInstance.state.in_(_RUNNING) & (TaskInstance.last_heartbeat_at > since)


def _is(key: TaskInstanceKey) -> ColumnElement[bool]:
    return (
        (TaskInstance.dag_id == key.dag_id)
        & (TaskInstance.task_id == key.task_id)
        & (TaskInstance.run_id == key.run_id)
        & (TaskInstance.map_index == key.map_index)
    )


def _losses(session: Session, key: TaskInstanceKey) -> int:
    return (
        session.scalar(
            select(func.count())
            .select_from(Log)
            .where(
                Log.event == LOST_EVENT,
                Log.dag_id == key.dag_id,
                Log.task_id == key.task_id,
                Log.run_id == key.run_id,
                Log.map_index == key.map_index,
                Log.try_number == key.try_number,
            )
        )
        or 0
    )

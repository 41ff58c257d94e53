"""Airflow 3's own scheduler, bounded: everything that depends on its class is here.

Private names of Airflow that this rests on (3.3.2): ``SchedulerJobRunner._do_scheduling``,
``_process_executor_events``, ``adopt_or_reset_orphaned_tasks``, ``num_runs``, which the loop reads again
after every iteration, ``_execute``, which ends the executors last, ``scheduler_dag_bag``,
``_set_exceeds_max_active_runs`` and the names in ``TIMED_DUTIES``.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta
from typing import Any

from airflow import settings
from airflow._shared.observability.metrics import stats
from airflow._shared.timezones import timezone
from airflow.executors.base_executor import BaseExecutor
from airflow.jobs.job import Job, run_job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from sqlalchemy import select
from sqlalchemy.orm import Session, configure_mappers, joinedload

from airflow_provider_modal.container.execution_api import leave_out_old_versions
from airflow_provider_modal.scheduler import jobs, outlook
from airflow_provider_modal.scheduler.bounded import Loop, Outlook, Reason, StopRule

log = logging.getLogger(__name__)

TIMED_DUTIES = (
    "check_trigger_timeouts",
    "check_awaiting_input_timeouts",
    "_mark_backfills_complete",
    "_find_and_purge_task_instances_without_heartbeats",
    "_update_dag_run_state_for_paused_dags",
    "_handle_tasks_stuck_in_queued",
    "_update_asset_orphanage",
    "_remove_unreferenced_triggers",
    "_reap_stale_connection_tests",
    "_count_active_runs_again",
)
"""What a long-lived scheduler does every 10 to 300 seconds, so that a bounded one would never come to it; and
one of our own."""

_POLL_SECONDS = 0.1
_RETRIES_LOOKED_AT = 200


def warm_up() -> None:
    """Import, in the zygote, everything that parsing and scheduling need."""
    import airflow.api_fastapi.execution_api.app
    import airflow.dag_processing.processor
    import airflow.executors.executor_loader  # noqa: F401
    import modal  # noqa: F401 (half a second; it starts no thread before its first call)

    import airflow_provider_modal.bundles.volume
    import airflow_provider_modal.executors.modal_executor
    import airflow_provider_modal.scheduler.af3_parsing  # noqa: F401

    # Files that read connections or variables while they are parsed make each parse build the API.
    leave_out_old_versions()
    configure_mappers()
    # Airflow's table of metric names is YAML that takes 0.15 s to read, metrics or not. Without the function
    # each child reads it itself.
    read_metric_names = getattr(stats, "_get_registry", None)
    if read_metric_names is not None:
        read_metric_names()
    if settings.engine is not None:
        # A connection that several processes believe to be theirs answers one with the other's rows.
        settings.engine.dispose()


def schedule(env: str, max_seconds: float) -> dict[str, Any]:
    """Run Airflow's scheduler until nothing more can move, or for ``max_seconds``; return what it did."""
    job = Job(executor_class=jobs.marker(env))
    runner = BoundedSchedulerJobRunner(job, max_seconds)
    started = time.monotonic()
    run_job(job=job, execute_callable=runner._execute)
    with create_session() as session:
        waiting = outlook.deferred(session)
    return {
        "job_id": job.id,
        "hostname": job.hostname,
        **runner.summary(),
        "deferred": waiting,
        "seconds": round(time.monotonic() - started, 3),
    }


class BoundedSchedulerJobRunner(SchedulerJobRunner):
    """Airflow's scheduler loop with an end, and with waiting for completions instead of sleeping.

    :param max_seconds: when to end although there may be more to do.
    """

    def __init__(self, job: Job, max_seconds: float) -> None:
        super().__init__(job=job, num_runs=-1, only_idle=False, scheduler_idle_sleep_time=0.0)
        self._rule = StopRule(max_seconds, self._look)
        self._stopped: Reason | None = None
        self._loops = 0
        self._queued_in_loop = self._events_in_loop = 0
        self._queued = self._events = 0
        self._loop_began = self._active_until = timezone.utcnow()
        self._duties_done = False

    def summary(self) -> dict[str, Any]:
        """Return what this run did, for the log."""
        return {
            "loops": self._loops,
            "queued": self._queued,
            "events": self._events,
            "running": self._running(),
            "stopped": self._stopped or "signal",
        }

    def _execute(self) -> int | None:
        try:
            result: int | None = super()._execute()
            return result
        finally:
            self._hear_last_words()

    def _hear_last_words(self) -> None:
        """Process what executors still learnt while they ended, which Airflow leaves in their buffers.

        It is the ids of calls that were on their way to Modal: without them, who adopts these tasks has to
        look them up.
        """
        for executor in self.executors:
            events = len(executor.event_buffer)
            if not events:
                continue
            try:
                with create_session() as session:
                    super()._process_executor_events(executor=executor, session=session)
            except Exception:
                log.exception("what %s learnt while it ended is lost; adoption finds it out", executor)
                continue
            self._events += events

    def adopt_or_reset_orphaned_tasks(self, **kwargs: Any) -> int:
        """Adopt as Airflow does; the first time, at the start of the loop, do the timed duties after it."""
        reset: int = super().adopt_or_reset_orphaned_tasks(**kwargs)
        if not self._duties_done:
            self._duties_done = True
            for name in TIMED_DUTIES:
                self._do_duty(name)
        return reset

    def _do_duty(self, name: str) -> None:
        duty = getattr(self, name, None)
        if duty is None:
            return
        try:
            duty()
        except Exception:
            log.exception("the scheduler's duty %s failed; the next run tries again", name)

    def _count_active_runs_again(self) -> None:
        """Let DAGs go on whose runs a person has ended.

        Airflow counts when a run ends in its scheduler, and when a file is parsed, maybe an hour later.
        """
        with create_session() as session:
            held = session.scalars(
                select(DagModel).where(
                    DagModel.exceeds_max_non_backfill, ~DagModel.is_paused, ~DagModel.is_stale
                )
            )
            for dag_model in held.all():
                self._set_exceeds_max_active_runs(dag_model=dag_model, session=session)

    def _do_scheduling(self, session: Session) -> int:
        if self._loops and not self._goes_on():
            # Only this, read at the end of the loop, ends it: the executor is heard once more on the way.
            self.num_runs = 1
            self._queued_in_loop = self._events_in_loop = 0
            return 0
        self._loops += 1
        self._loop_began = timezone.utcnow()
        self._queued_in_loop = self._events_in_loop = 0
        self._queued_in_loop = super()._do_scheduling(session)
        self._queued += self._queued_in_loop
        return self._queued_in_loop

    def _process_executor_events(self, executor: BaseExecutor, session: Session) -> int:
        # Counted here: Airflow returns how many are left of what it took, which is none.
        events = len(executor.event_buffer)
        super()._process_executor_events(executor=executor, session=session)
        self._events_in_loop += events
        self._events += events
        if events and self._stopped == "idle":
            self._stopped, self.num_runs = None, -1
        return events

    def _goes_on(self) -> bool:
        loop = Loop(
            queued=self._queued_in_loop,
            events=self._events_in_loop,
            running=self._running(),
            busy=any(getattr(executor, "busy", False) for executor in self.executors),
        )
        step = self._rule.after(loop)
        self._stopped = step.stop
        if step.stop:
            return False
        if step.seconds:
            self._wait(step.seconds)
        if loop.queued or loop.events:
            self._active_until = timezone.utcnow()
        return True

    def _running(self) -> int:
        return sum(executor.slots_occupied for executor in self.executors)

    def _wait(self, seconds: float) -> None:
        waiting = [executor for executor in self.executors if hasattr(executor, "wait_for_event")]
        if len(waiting) == len(self.executors) == 1:
            waiting[0].wait_for_event(seconds)
        else:
            time.sleep(min(seconds, _POLL_SECONDS))

    def _look(self) -> Outlook:
        with create_session() as session:
            return outlook.look(
                session,
                now=timezone.utcnow(),
                began=self._loop_began,
                since=self._active_until,
                retries=self._next_retry,
            )

    def _next_retry(self, session: Session, after: datetime) -> datetime | None:
        """Return when the next retry is due; what failed days ago waits for something else."""
        waiting = session.scalars(
            select(TaskInstance)
            .join(TaskInstance.dag_run)
            .where(
                TaskInstance.state == TaskInstanceState.UP_FOR_RETRY,
                TaskInstance.end_date > after - timedelta(days=1),
                DagRun.state == DagRunState.RUNNING,
            )
            .options(joinedload(TaskInstance.dag_run))
            .order_by(TaskInstance.end_date)
            .limit(_RETRIES_LOOKED_AT)
        )
        times = []
        for ti in waiting:
            dag = self.scheduler_dag_bag.get_dag_for_run(dag_run=ti.dag_run, session=session)
            if dag is None or not dag.has_task(ti.task_id):
                continue
            ti.task = dag.get_task(ti.task_id)
            at = ti.next_retry_datetime()
            if at > after:
                times.append(at)
        return min(times, default=None)

"""Airflow 3's own triggerer, with an end: everything that depends on its classes is here.

Private names of Airflow that this rests on (3.3.2): ``TriggererJobRunner._execute``, which names
``TriggerRunnerSupervisor`` in its module; of that class ``load_triggers``, ``update_triggers``,
``handle_events``, ``handle_failed_triggers``, ``running_triggers``, ``events``, ``failed_triggers``,
``logger_cache``, ``stop``, ``run_in_process``; of ``TriggerRunner`` ``events``, ``init_comms`` and
``sync_state_to_supervisor``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from airflow import settings
from airflow.jobs import triggerer_job_runner
from airflow.jobs.job import Job, run_job
from airflow.jobs.triggerer_job_runner import TriggererJobRunner, TriggerRunner, TriggerRunnerSupervisor
from airflow.utils.session import create_session
from sqlalchemy import select
from sqlalchemy.orm import configure_mappers

from airflow_provider_modal import airflow_settings, names, wire
from airflow_provider_modal.bundles import dag_modules
from airflow_provider_modal.container.execution_api import leave_out_old_versions
from airflow_provider_modal.scheduler import jobs
from airflow_provider_modal.triggerer import logs
from airflow_provider_modal.triggerer.waker import Waker

log = logging.getLogger(__name__)

GRACE_SECONDS = 2.0
"""How long a trigger that fired may go on before Airflow cancels it, as somebody who has no purpose any more.
Airflow's own loops leave it one to two seconds by chance."""
WAKE_SECONDS = 5.0
"""How long the end waits for a wake-up that is under way."""

Reason = Literal["idle", "budget", "signal", "died"]


def warm_up() -> None:
    """Import, in the zygote, everything that the triggerer needs."""
    import modal  # noqa: F401 (it starts no thread before its first call)

    # A trigger that reads connections or variables makes the triggerer build the API.
    leave_out_old_versions()
    configure_mappers()
    if settings.engine is not None:
        settings.engine.dispose()


def run_triggers(env: str, max_seconds: float, linger_seconds: float, folder: str | None) -> dict[str, Any]:
    """Run Airflow's triggerer until there are no triggers, or for ``max_seconds``; return what it did.

    :param linger_seconds: how long to stay after the last trigger.
    :param folder: the DAG tree on local disk, whose modules triggers may come from.
    """
    if folder is not None:
        dag_modules.use(Path(folder), plugins=True)
    job = Job(executor_class=jobs.marker(env))
    rule = BoundedSupervisor.rule = _Rule(
        time.monotonic() + max_seconds, linger_seconds, Waker(names.ResourceNames(env))
    )
    triggerer_job_runner.TriggerRunnerSupervisor = BoundedSupervisor
    started = time.monotonic()
    runner = TriggererJobRunner(job)
    run_job(job=job, execute_callable=runner._execute)
    rule.waker.finish(WAKE_SECONDS)
    return {
        "stopped": rule.stopped
        or ("signal" if runner.trigger_runner and runner.trigger_runner.stop else "died"),
        "events": rule.events,
        "failures": rule.failures,
        "job_id": job.id,
        "seconds": round(time.monotonic() - started, 3),
    }


class _Rule:
    """When a triggerer ends, and what it did until then.

    :param deadline: on the monotonic clock.
    """

    def __init__(self, deadline: float, linger_seconds: float, waker: Waker) -> None:
        self.waker = waker
        self.events = self.failures = 0
        self.stopped: Reason | None = None
        self._deadline = deadline
        self._linger = linger_seconds
        self._needed_until = time.monotonic()

    def ends(self, needed: bool) -> bool:
        """Tell whether to end, now that there are triggers or none."""
        now = time.monotonic()
        if needed:
            self._needed_until = now
        if now >= self._deadline:
            self.stopped = "budget"
        elif now - self._needed_until >= self._linger:
            self.stopped = "idle"
        return self.stopped is not None


class BoundedSupervisor(TriggerRunnerSupervisor):
    """Airflow's supervisor of the process that runs triggers, with an end, and with wake-ups."""

    rule: ClassVar[_Rule]
    _fired: dict[int, float]
    _requested: set[int]
    _logs: set[str]
    """Of triggers that may write to them, as paths below Airflow's ``base_log_folder``."""

    @classmethod
    def start(cls, **kwargs: Any) -> Any:
        """Fork the process of the triggers; from then on this one may have threads."""
        started = super().start(**kwargs)
        started._fired, started._requested, started._logs = {}, set(), set()
        cls.rule.waker.start()
        return started

    @classmethod
    def run_in_process(cls) -> None:
        """Run triggers, in the forked process."""
        EagerTriggerRunner().run()

    def load_triggers(self) -> None:
        """Take over what is there, and end when there has been nothing for a while."""
        super().load_triggers()
        needed = bool(self._requested or self.running_triggers or self.events or self.failed_triggers)
        if self.rule.ends(needed):
            self.stop = True

    def update_triggers(self, requested_trigger_ids: set[int]) -> None:
        """Pass on what is to run, but don't cancel what fired a moment ago or was taken over by others."""
        self._requested = requested_trigger_ids
        now = time.monotonic()
        self._fired = {id: at for id, at in self._fired.items() if now - at < GRACE_SECONDS}
        closing = self._fired.keys() & self.running_triggers
        if (self.running_triggers - requested_trigger_ids - closing) and self._is_superseded():
            # They run elsewhere: to cancel them would tell them that a person has.
            log.error("another triggerer has taken over; this one ends")
            self.stop = True
            return
        super().update_triggers(requested_trigger_ids | closing)
        self._follow_logs()

    def handle_events(self) -> None:
        """Pass events on to the tasks that wait for them, and wake the scheduler."""
        fired = [entry[0] for entry in self.events]
        super().handle_events()
        if fired:
            self._fired.update(dict.fromkeys(fired, time.monotonic()))
            self.rule.events += len(fired)
            self.rule.waker.wake()

    def handle_failed_triggers(self) -> None:
        """Fail the tasks that wait for a trigger that failed, and wake the scheduler."""
        failed = len(self.failed_triggers)
        super().handle_failed_triggers()
        if failed:
            self.rule.failures += failed
            self.rule.waker.wake()

    def _is_superseded(self) -> bool:
        """Tell whether a successor has ended our job, which it does before it takes any trigger."""
        assert self.job is not None
        with create_session() as session:
            return session.scalar(select(Job.end_date).where(Job.id == self.job.id)) is not None

    def _follow_logs(self) -> None:
        """Give each trigger a log of its own, and say which are complete.

        Airflow's name is the same for all triggers of one try; it keeps a logger for as long as its trigger
        runs.
        """
        assert self.job is not None
        for trigger_id, factory in self.logger_cache.items():
            if factory.log_path not in self._logs:
                key = wire.TaskKey(
                    factory.ti.dag_id,
                    factory.ti.task_id,
                    factory.ti.run_id,
                    factory.ti.try_number,
                    -1 if factory.ti.map_index is None else factory.ti.map_index,
                )
                factory.log_path = logs.local_path(key, time.time(), self.job.id, trigger_id)
                self._logs.add(factory.log_path)
        for log_path in self._logs - {factory.log_path for factory in self.logger_cache.values()}:
            logs.mark_finished(airflow_settings.log_folder() / log_path)
            self._logs.discard(log_path)


class EagerTriggerRunner(TriggerRunner):
    """Airflow's loop around triggers, which passes events on at once instead of once a second."""

    def __init__(self) -> None:
        super().__init__()
        self._news = asyncio.Event()
        self.events = _Told(self._news.set)
        self._passing_on: asyncio.Task[None] | None = None

    async def init_comms(self) -> None:
        """Connect to the supervisor, and begin to pass events on."""
        await super().init_comms()
        self._passing_on = asyncio.create_task(self._pass_on(), name="pass-events-on")

    async def _pass_on(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            # That they have ended is told by Airflow's loop: the supervisor closes their logs when it hears
            # that, and their last lines may still be on the way.
            await self.sync_state_to_supervisor([])


class _Told(deque[Any]):
    """A queue that tells when something was put into it."""

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__()
        self._tell = tell

    def append(self, item: Any) -> None:
        """Put an item into it."""
        super().append(item)
        self._tell()

"""Airflow's executor contract, kept by a dispatcher in the background.

What runs on the scheduler's thread here touches memory, and at most once per interval the database; never
Modal. A **dispatch** is one transition of a task instance to ``queued``; its id is the UUID that Airflow
assigns with that transition (3.2 and later) or one of ours. ``TaskInstance.external_executor_id`` is
``{dispatch}/{function call id}``, or the dispatch alone where a scheduler died before the second was known.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from airflow.executors import workloads
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.state import TaskInstanceState

from airflow_provider_modal import names, wire
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.executors import task_call, task_log, task_options
from airflow_provider_modal.executors.af3 import Airflow3Executor
from airflow_provider_modal.executors.cancellations import Cancellations
from airflow_provider_modal.executors.counters import Counters
from airflow_provider_modal.executors.deployed import Deployed
from airflow_provider_modal.executors.dispatcher import Dispatcher
from airflow_provider_modal.executors.gateway import Gateway
from airflow_provider_modal.executors.ledger import Flight, Ledger
from airflow_provider_modal.executors.metrics import Metrics
from airflow_provider_modal.executors.options import Options, too_soon
from airflow_provider_modal.executors.owner import Owner, owner_of
from airflow_provider_modal.executors.task_events import TaskEvents
from airflow_provider_modal.executors.telling import Telling
from airflow_provider_modal.log.remote import reads_logs

if TYPE_CHECKING:
    from airflow.cli.cli_config import GroupCommand
    from airflow.executors.workloads import ExecutorWorkload
    from airflow.models.connection_test import ConnectionTestKey
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy.orm import Session

    from airflow_provider_modal.executors.adoption import Adoption
    from airflow_provider_modal.executors.outcomes import Outcomes
    from airflow_provider_modal.executors.silence import Silence
    from airflow_provider_modal.executors.slots import SlotDrift

EVENTS_END = 5.0
"""Seconds that writing the last events of task instances may take at the end."""

_LIVE = (TaskInstanceState.QUEUED, TaskInstanceState.RUNNING)


class ModalExecutor(Airflow3Executor):
    """Runs each task as a call of a Modal function.

    Safe to construct anywhere (the API server does, for logs); only ``start`` begins to talk to Modal.

    Airflow makes one instance per team; each reads section ``[modal]`` as its team has it and has an
    environment, slots, a dispatcher and a partition of its own.
    """

    supports_multi_team = True
    supports_ad_hoc_ti_run = False
    is_local = False
    is_production = True
    serve_logs = False
    pre_assigns_external_executor_id = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ledger = Ledger()
        self.counters = Counters()
        self._options: Options | None = None
        self._deployed: Deployed | None = None
        self._dispatcher: Dispatcher | None = None
        self._partition = ""
        self._listening = False
        self._task_events = TaskEvents()
        self._metrics = Metrics({"team_name": self.team_name} if self.team_name else None)
        # Made by start(): what they do needs Airflow's models and a database.
        self._cancellations: Cancellations | None = None
        self._silence: Silence | None = None
        self._telling: Telling | None = None
        self._outcomes: Outcomes | None = None
        self._adoption: Adoption | None = None
        self._slot_drift: SlotDrift | None = None
        self._look_back = False
        """What former schedulers left, besides task instances, is to be looked for."""

    # The scheduler's life cycle.

    def start(self) -> None:
        """Start the dispatcher.

        :raises ConfigError: the environment or an option of section ``[modal]`` is missing or wrong.
        """
        self._options = Options.read(self.conf)
        # The scheduler's own option: a team has none.
        if warning := too_soon(self._options, conf.getfloat("scheduler", "task_queued_timeout")):
            self.log.warning(warning)
        self._deployed = Deployed.find(self._options, team=self.team_name)
        # The scheduler sets job_id before it calls start(); `dags test --use-executor` doesn't.
        self._partition = (
            names.scheduler_partition(self.team_name)
            if self._options.serverless
            else names.job_partition(
                self.job_id if self.job_id is not None else uuid.uuid4().hex, self.team_name
            )
        )
        self._listening = False
        self._use(self._make_dispatcher(self._deployed, self._options), self._options)
        assert self._dispatcher
        self._dispatcher.start()
        if not self._deployed.known:
            self._dispatcher.learn(self._deployed)
        self._look_back = True

    def _use(self, dispatcher: Dispatcher, options: Options) -> None:
        from airflow_provider_modal.executors.adoption import Adoption
        from airflow_provider_modal.executors.outcomes import Outcomes
        from airflow_provider_modal.executors.silence import Silence
        from airflow_provider_modal.executors.slots import SlotDrift
        from airflow_provider_modal.executors.waiting import Waiting

        self._dispatcher = dispatcher
        self._slot_drift = SlotDrift(
            self.job_id,
            lambda: {*self.running, *chain(*self.waiting_workloads())},
            self._metrics,
            options.silent_after,
        )
        self._cancellations = Cancellations(self._task_events, options.environment or "")
        self._telling = Telling(self._task_events, self._metrics, dispatcher.explain)
        self._silence = Silence(
            self.ledger,
            dispatcher,
            self.job_id,
            options.silent_after,
            self.counters,
            forget=lambda flight: outcomes.forget(flight),
        )
        self._outcomes = outcomes = Outcomes(
            self,
            self.ledger,
            self._cancellations,
            self.counters,
            alive=self._silence.alive,
            telling=self._telling,
            waiting=Waiting(dispatcher, options, self.counters),
            cancel=lambda flight, why: self._cancel(flight.key, flight.dispatch, flight.call_id, why),
        )
        self._adoption = Adoption(
            self.running,
            self.ledger,
            dispatcher,
            self._silence,
            after=options.silent_after,
            serverless=options.serverless,
            team=self.team_name,
            tell_call=outcomes.tell_call,
        )

    def _make_dispatcher(self, deployed: Deployed, options: Options) -> Dispatcher:
        gateway = Gateway(deployed.resources, options.rpc_timeout, deployed.account)
        return Dispatcher(gateway, options, self._metrics)

    def end(self) -> None:
        """Let calls that are on their way to Modal arrive, within ``[modal] end_timeout``; cancel nothing.

        What became known by then is in the event buffer on return. Tasks run on; whoever schedules next
        adopts them.
        """
        self._stop(self._options.end_timeout if self._options else 0.0)

    def terminate(self) -> None:
        """Stop at once; cancel nothing."""
        self._stop(0.0)

    def _stop(self, flush: float) -> None:
        if self._dispatcher is not None and self._outcomes is not None:
            self._dispatcher.stop(flush)
            self._outcomes.apply(self._dispatcher.drain())
            self._task_events.close(max(flush, EVENTS_END))
            self._send_metrics()
        if self._slot_drift is not None:
            self._slot_drift.close()

    # For a bounded scheduler.

    @property
    def in_flight_submissions(self) -> int:
        """How many task calls and questions wait for Modal's answer."""
        return self.ledger.waiting()

    @property
    def busy(self) -> bool:
        """Whether something is about to happen without the scheduler's doing: an answer of Modal is
        awaited, or reports wait for ``sync``."""
        return self.ledger.waiting() > 0 or (self._dispatcher is not None and self._dispatcher.has_reports)

    def wait_for_event(self, timeout: float) -> bool:
        """Sleep until ``sync`` has something to do, at most ``timeout`` seconds; return whether it has.

        What a scheduler loop does instead of sleeping a fixed time.
        """
        if self._dispatcher is None:
            return False
        return self._dispatcher.wait_for_event(timeout)

    # Workloads.

    def queue_workload(self, workload: ExecutorWorkload, session: Session) -> None:
        """Accept a workload, or fail it with a sentence; never raises into the scheduler's loop."""
        # Of callbacks and connection tests the scheduler notes after this call that they are queued, so what
        # is wrong with them is found by the next heartbeat.
        if isinstance(workload, workloads.ExecuteTask):
            try:
                task_options.read(workload.ti.executor_config)
                profile = task_call.profile(workload)
                if self._deployed is not None and not self._deployed.must_read(profile):
                    self._deployed.check(profile)
            except Exception as error:
                why = str(error)
                if not isinstance(error, ModalflowError):
                    self.log.exception("what task instance %s asks for can't be read", workload.ti.key)
                    why = f"its executor_config can't be read: {type(error).__name__}: {error}"
                self.log.error("task instance %s is refused: %s", workload.ti.key, why)
                if self._outcomes is not None:
                    self._outcomes.fail(workload.ti.key, why)
                else:
                    self.fail(workload.ti.key, info=why)
                return
        try:
            super().queue_workload(workload, session)
        except Exception as error:
            # The scheduler's loop would end with it. What the workload is about stays queued in Airflow.
            kind = type(workload).__name__
            self.log.error(
                "a workload of kind %s is dropped (%s); is there a newer airflow-provider-modal?", kind, error
            )

    def _process_workloads(self, workload_items: Sequence[ExecutorWorkload]) -> None:
        assert self._deployed and self._dispatcher and self._options and self._outcomes, "not started"
        before = len(self.ledger)
        for workload in workload_items:
            key = workload.key
            if self._deployed.must_read(task_call.profile(workload)):
                # The workload stays queued until then.
                self._dispatcher.learn(self._deployed)
                continue
            self.take_out(key)
            self.running.add(key)
            try:
                submission = task_call.submission(workload, self._deployed, self._options, self._partition)
            except ModalflowError as error:
                self._outcomes.fail(key, str(error))
                continue
            except Exception as error:
                self.log.exception("no task call can be made of %s", key)
                self._outcomes.fail(
                    key, f"the workload can't be sent to Modal: {type(error).__name__}: {error}"
                )
                continue
            self.ledger.open(
                Flight(
                    submission.call.dispatch,
                    key,
                    last_sign=time.time(),
                    question=True,
                    function=submission.function,
                    options=submission.options,
                )
            )
            self._dispatcher.submit(submission)
        if len(self.ledger) > before:
            new = len(self.ledger) - before
            self.log.info("%d workloads are on their way to Modal; under way: %d", new, len(self.ledger))

    # What became of them.

    def sync(self) -> None:
        """Turn the dispatcher's reports into Airflow's events, and find the dispatches gone silent."""
        if self._dispatcher is None:
            return
        assert self._outcomes and self._adoption and self._silence and self._telling and self._slot_drift
        assert self._cancellations
        if not self._listening and len(self.ledger):
            # Only for something that can end: a scheduler that finds nothing to do never talks to Modal. And
            # not before the first heartbeat: adoption precedes it, and an event that came before the adoption
            # of its dispatch would be foreign.
            self._dispatcher.listen(self._partition)
            self._listening = True
        if self._look_back:
            self._look_back = False
            self._cancellations.take_over(self._dispatcher)
            self._adoption.callbacks(self.is_waiting)
        news = self._dispatcher.drain()
        self._outcomes.apply(news)
        self._telling.took(len(news), len(self.ledger))
        self._silence.look()
        self._slot_drift.look()
        self._send_metrics()

    def _send_metrics(self) -> None:
        self._metrics.totals(self.counters)
        self._metrics.send()

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None:
        """Note an event for the scheduler; also called by it, for tasks that it gave up."""
        flight = self.ledger.of_key(key) if state not in _LIVE else None
        if flight is not None and self._dispatcher is not None:
            # Ended by somebody else (no heartbeats): what may be left of it must not go on.
            self.ledger.close(key)
            why = f"Airflow had given the task up as {getattr(state, 'value', state)}"
            self._cancel(key, flight.dispatch, flight.call_id, why)
            if info is None and state == TaskInstanceState.FAILED:
                # Otherwise Airflow's last event about it would say no more than that.
                info = (
                    f"{why}, without a heartbeat for [scheduler] task_instance_heartbeat_timeout; its call "
                    f"{flight.call_id or ''} is cancelled, whose log in Modal may say what became of it"
                )
        super().change_state(key, state, info, remove_running)

    # Handing over.

    def try_adopt_task_instances(self, tis: Sequence[TaskInstance]) -> Sequence[TaskInstance]:
        """Take over what a scheduler that is gone left behind; return what has no dispatch at all.

        Everything with a dispatch occupies a slot at once.
        """
        if self._adoption is None:
            return tis
        # Not here: a session of ours would take the task instances out of Airflow's.
        self._look_back = True
        return self._adoption.task_instances(tis)

    def revoke_task(self, *, ti: TaskInstance) -> None:
        """Forget a task instance and cancel its function call, in the background; makes no event."""
        self.take_out(ti.key)
        self.running.discard(ti.key)
        flight = self.ledger.close(ti.key)
        if self._dispatcher is None:
            return
        dispatch, call_id = wire.parse_external_executor_id(ti.external_executor_id)
        if flight is not None:
            dispatch, call_id = flight.dispatch, flight.call_id
        if dispatch is not None:
            why = "Airflow's scheduler took the task back, which had been queued for too long"
            self._cancel(ti.key, dispatch, call_id, why)

    def fail_connection_test(self, key: ConnectionTestKey) -> None:
        """Forget a connection test that Airflow gave up, and cancel its function call."""
        super().fail_connection_test(key)
        flight = self.ledger.close(key)
        if flight is not None:
            self._cancel(key, flight.dispatch, flight.call_id, "the connection test took too long")

    def _cancel(self, key: Any, dispatch: str, call_id: str | None, why: str) -> None:
        assert self._dispatcher and self._cancellations
        if isinstance(key, TaskInstanceKey):
            self._cancellations.begin(self._dispatcher, key, dispatch, call_id, why)
        else:
            self._dispatcher.cancel(dispatch, call_id, why)

    # For users.

    def get_task_log(self, ti: TaskInstance, try_number: int) -> tuple[list[str], list[str]]:
        """Return (where the log is, lines); in the API server too, where the executor is never started.

        The first is never empty: Airflow would ask the task's host for the log, and containers have none. The
        second is, where our ``logging_config_class`` has Airflow read the log from the Volume itself.
        """
        key, call_id = task_log.key_of(ti, try_number)
        heading = task_log.heading(call_id)
        if reads_logs():
            return [heading], []
        # Airflow asks the global executor of this name, also for the task of a team.
        owner = Owner(self.team_name) if self.team_name else owner_of(ti) or Owner()
        try:
            logs = task_log.logs_of(owner)
        except ModalflowError as error:
            return [heading, f"Its log can't be looked for: {error}"], []
        answer = logs.read(key, call_id)
        return [heading, *answer.sources], answer.lines

    @staticmethod
    def get_cli_commands() -> list[GroupCommand]:
        """Return ``airflow modalflow``, for an Airflow that asks executors and not providers (before 3.3)."""
        from airflow_provider_modal.cli.definition import get_modalflow_cli_commands

        return list(get_modalflow_cli_commands())

    def debug_dump(self) -> None:
        """Log what is on its way (the scheduler does it on SIGUSR2)."""
        super().debug_dump()
        self.log.info(
            "dispatches under way (%d), counters %s\n\t%s",
            len(self.ledger),
            dict(self.counters),
            "\n\t".join(map(repr, self.ledger)),
        )

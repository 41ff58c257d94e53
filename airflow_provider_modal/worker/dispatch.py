"""What happens to one dispatch in its container, from the function call to the report?

    claim -> DAG version on local disk -> claim started -> supervised child of the zygote, under a time limit
    and with its log shipped -> report

Runs in the entry process, which talks to Modal; user code runs below the child, which does not. Whatever goes
wrong ends in a completion with a reason, never in an exception; only a cancelled call, and one whose
container Modal takes away, end as Modal expects.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_modal import airflow_settings, names, version_compat, wire
from airflow_provider_modal.container.zygote import Outcome, Zygote, ZygoteError
from airflow_provider_modal.errors import ModalflowError, UnreachableError
from airflow_provider_modal.log import tail
from airflow_provider_modal.log.lines import INCOMPLETE
from airflow_provider_modal.log.task_log import TaskLog
from airflow_provider_modal.modal_errors import is_refused_token
from airflow_provider_modal.venvs.provision import Venvs
from airflow_provider_modal.volume import dag_copies, dag_versions
from airflow_provider_modal.worker import claim, limits, memory, reasons, venvs
from airflow_provider_modal.worker.container import Container
from airflow_provider_modal.worker.patience import GaveUpError, patiently

log = logging.getLogger(__name__)

RELOAD_DEADLINE = 60.0
"""Seconds for a reload of the mount; it can't be interrupted, so it must have ended before a task begins."""

_former_inputs = 0
"""How many inputs this container had before: a mount that is fresh needs no reload."""


def execute(zygote: Zygote, call: Mapping[str, Any]) -> dict[str, Any]:
    """Run one dispatch.

    :param zygote: the container's.
    :param call: ``wire.TaskCall`` on the wire.
    :return: ``wire.Completion`` on the wire; also reported to the executor.
    :raises modal.exception.InputCancellation: the call was cancelled; the task has been stopped.
    :raises KeyboardInterrupt: Modal takes the container away; what was to report is reported, and the call's
        next delivery finds it.
    """
    with limits.cancellation() as cancelled:
        container = Container.of_this_process()
        try:
            task_call = wire.TaskCall.from_wire(call)
        except wire.WireError as error:
            return _refuse(container, call, str(error))
        completion = _Run(container, zygote, task_call, cancelled).to_end()
    if cancelled.preempted:
        raise KeyboardInterrupt
    if completion.outcome in ("failed", "not_started") and str(completion.reason).startswith(_CANCELLED):
        from modal.exception import InputCancellation

        raise InputCancellation(completion.reason)
    return completion.to_wire()


def _refuse(container: Container, call: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """Report a call that can't be understood, as far as it says whom to tell."""
    log.error("the task call is refused: %s", reason)
    try:
        completion = wire.Completion(
            dispatch=str(call["dispatch"]),
            key=wire.task_key(call["key"], call["kind"]),
            kind=call["kind"],
            outcome="failed",
            reason=reason,
            call_id=container.call_id,
            container=container.id,
            ended_at=time.time(),
        )
        partition = str(call["partition"])
    except (KeyError, TypeError):
        # Nobody to tell but whoever asks for the call's result.
        return {"wire": wire.WIRE_VERSION, "outcome": "failed", "reason": reason}
    wakes = bool(call.get("wakes_scheduler", True))
    container.report(completion, partition=partition, wakes_scheduler=wakes)
    return completion.to_wire()


class _Run:
    """One delivery of one dispatch."""

    def __init__(
        self, container: Container, zygote: Zygote, call: wire.TaskCall, cancelled: limits.Cancellation
    ) -> None:
        self.container = container
        self.zygote = zygote
        self.call = call
        self.cancelled = cancelled
        self.started_at = time.time()
        self.lost_container: str | None = None
        """The container that had the call before."""
        self.supervised = False
        """The task's supervisor was started here."""
        self.spoiled = False
        """Nothing could be started in this container, for a reason that is its own."""
        self.time_limit = call.timeout
        self.log = TaskLog(
            container.files,
            airflow_settings.log_folder(),
            call.log_path,
            call.key,
            started_at=self.started_at,
            dispatch=call.dispatch,
        )

    def to_end(self) -> wire.Completion:
        """Run it, report, and return what was reported."""
        log.info("dispatch %s: %s, call %s", self.call.dispatch, self.call.subject, self.container.call_id)
        try:
            completion = self._completion()
        except BaseException:
            # Preempted, and it runs again: its last lines say why.
            self._ended_log(self.log.end)
            raise
        reason = completion.reason
        log.info("dispatch %s: %s%s", self.call.dispatch, completion.outcome, f": {reason}" if reason else "")
        if reason is not None:
            failed = completion.outcome in ("failed", "not_started")
            values = {INCOMPLETE: True} if self.lost_container is not None else {}
            self.log.note("error" if failed else "info", reason, **values)
        self._ended_log(self.log.end)
        self.container.report(
            completion, partition=self.call.partition, wakes_scheduler=self.call.wakes_scheduler
        )
        self._ended_log(self.log.close)
        if self.spoiled:
            # It would be idle again at once, and so attract every call that waits.
            self.container.retire()
        return completion

    @staticmethod
    def _ended_log(step: Callable[[], None]) -> None:
        """Take a last step with the log; what goes wrong there must not keep the end from being reported."""
        try:
            step()
        except Exception:
            log.exception("the task's log may be incomplete")

    def _completion(self) -> wire.Completion:
        """Run it, unless a former delivery has, and return how it ended."""
        outcome: wire.Outcome
        env: dict[str, str] = {}
        try:
            self.cancelled.interruptible = True
            verdict = self._claim()
            self.lost_container = verdict.lost_container
            if verdict.reported is None and verdict.run:
                env = self._prepare()
                verdict = claim.reported_meanwhile(self.container.state, self.call, verdict) or verdict
            if verdict.run:
                verdict = claim.taken_over(self.container.state, self.call, verdict) or verdict
            if verdict.reported is not None:
                self.log.note("info", str(verdict.reason))
                # Reported once more: its container may have been lost between the result and the event. An
                # event that is repeated is one of a dispatch that its executor no longer knows.
                return verdict.reported
            outcome, reason = self._run(verdict, env) if verdict.run else self._not_run(verdict)
        except UnreachableError as error:
            outcome, reason = "not_started", str(error)
        except ZygoteError as error:
            outcome, reason = "not_started", str(error)
            self.spoiled = True
        except ModalflowError as error:
            # A token that is refused is this container's: the next one has another.
            self.spoiled = is_refused_token(error) and not self.supervised
            outcome, reason = "not_started" if self.spoiled else "failed", str(error)
        except Exception as error:
            log.exception("dispatch %s failed", self.call.dispatch)
            outcome = "failed" if self.supervised else "not_started"
            self.spoiled = True
            reason = f"the worker failed: {type(error).__name__}: {error}"
        finally:
            self.cancelled.interruptible = False
        if outcome == "failed" and reason is not None and self.call.log_lines:
            reason = tail.with_tail(reason, self._last_lines(), self.call.log_lines)
        return wire.Completion(
            dispatch=self.call.dispatch,
            key=self.call.key,
            kind=self.call.kind,
            outcome=outcome,
            reason=reason,
            call_id=self.container.call_id,
            container=self.container.id,
            started_at=self.started_at,
            ended_at=time.time(),
            lost_container=self.lost_container,
        )

    def _claim(self) -> claim.Verdict:
        self.log.begin(
            "Modal container took the task",
            dispatch=self.call.dispatch,
            function_call=self.container.call_id,
            container=self.container.id,
            seconds_since_queued=round(self.started_at - self.call.queued_at, 2),
        )
        token = str(uuid.uuid4())
        return claim.claim(self.container.state, self.call, token, self.container.id)

    def _not_run(self, verdict: claim.Verdict) -> tuple[wire.Outcome, str | None]:
        if verdict.obsolete:
            return "obsolete", verdict.reason
        return "failed", reasons.lost(self.call, verdict)

    def _prepare(self) -> dict[str, str]:
        """Get ready whatever a task needs and return its environment variables; may take a while."""
        self._refresh_mount()
        env = {**self.call.env, **self._dag_version(), airflow_settings.DISPATCH: self.call.dispatch}
        env.update(self._virtualenv(env.get(dag_versions.HEAD_VARIABLE)))
        self.zygote.ready()
        return env

    def _run(self, verdict: claim.Verdict, env: Mapping[str, str]) -> tuple[wire.Outcome, str | None]:
        if self.cancelled.requested:
            # An executor takes a call back that waits for too long, and may do so just when it is taken: the
            # task is dispatched again if Airflow still waits for it.
            by_airflow, reason = self._cancelled()
            return "not_started" if by_airflow else "failed", reason
        # From here on an interruption would leave a task behind that nobody stops and reports.
        self.cancelled.interruptible = False
        oom_kills = memory.oom_kills()
        _, limit = reasons.profile_and_memory(self.call)
        with claim.started(
            self.container.state,
            self.call,
            verdict.claim,
            memory_used=memory.used,
            memory_alarm=memory.NEAR * limit if limit is not None else float("inf"),
        ):
            self.supervised = True
            self.time_limit = venvs.time_limit(self.call, self.started_at)
            target, arguments = self._target(verdict)
            child = self.zygote.spawn(target, arguments, env)
            ending = limits.await_end(
                child,
                self.time_limit,
                self.cancelled,
                on_stop=self._note_stop,
                on_kill=lambda grace: self.log.note(
                    "error",
                    f"the task did not end within {grace:g} s after SIGTERM and is killed; an operator with "
                    "an on_kill method can end earlier",
                ),
            )
        if ending.stopped is not None and _went_well(ending.outcome):
            # It was through before it noticed.
            return "done", None
        if ending.stopped == "preempted" and self.call.on_container_loss == "rerun":
            # Without a report the next delivery finds a lost container, and runs the task again.
            raise KeyboardInterrupt
        if ending.stopped is not None:
            return "failed", self._stopped(ending.stopped)
        return self._result(ending.outcome, memory.rose(oom_kills, memory.oom_kills()))

    def _target(self, verdict: claim.Verdict) -> tuple[str, dict[str, Any]]:
        """Return what the zygote's child calls, and with what."""
        adapter = version_compat.adapter("airflow_provider_modal.worker")
        arguments = {"workload": self.call.workload}
        if self.call.kind == "callback":
            return f"{adapter}_callbacks:supervise", arguments
        if self.call.kind == "connection_test":
            return f"{adapter}_callbacks:check_connection", arguments
        return f"{adapter}:supervise", {**arguments, "lost_container": verdict.lost_container}

    def _result(self, outcome: Outcome, out_of_memory: bool) -> tuple[wire.Outcome, str | None]:
        if outcome.error is None and outcome.result["outcome"] != "failed":
            # Such as a disk that is full.
            self.spoiled = outcome.result["outcome"] == "not_started"
            return outcome.result["outcome"], outcome.result["reason"]
        if out_of_memory:
            return "failed", memory.reason(*reasons.profile_and_memory(self.call))
        if outcome.error is None:
            return "failed", outcome.result["reason"]
        if outcome.error_kind is not None:
            return "failed", outcome.error
        return "failed", f"the task's supervisor ended unexpectedly: {outcome.error}"

    def _last_lines(self) -> list[str]:
        """Return the last lines of the task's log; of a lost container's, what it got onto the Volume."""
        if self.supervised or self.call.key is None:
            return self.log.last_lines()
        return tail.of_volume(self.container.files, self.call.key)

    def _stopped(self, stop: limits.Stop) -> str:
        if stop == "cancelled":
            return self._cancelled()[1]
        return reasons.preempted() if stop == "preempted" else reasons.timeout(self.call, self.time_limit)

    def _note_stop(self, stop: limits.Stop) -> None:
        # Who cancelled the call is asked later: the task's own time to end has begun.
        why = _CANCELLED if stop == "cancelled" else self._stopped(stop)
        self.log.note("warning", f"{why}; the task gets SIGTERM")

    def _cancelled(self) -> tuple[bool, str]:
        """Return whether Airflow may have cancelled the call, and that it was cancelled and by whom."""
        key = names.cancel_key(self.call.dispatch)
        try:
            by = patiently("read who cancelled the call", lambda: self.container.state.get(key), repeat=False)
        except GaveUpError as error:
            return True, f"{_CANCELLED}; {error}"
        whom = by or "in Modal, by a person or a stop of the App; not by Airflow"
        return by is not None, f"{_CANCELLED}: {whom}"

    def _refresh_mount(self) -> None:
        """Show the task what earlier tasks left on the Volume, in a container that is used again."""
        global _former_inputs
        _former_inputs += 1
        if _former_inputs == 1:
            return
        try:
            patiently(
                "reload the Volume's mount", self.container.reload, repeat=False, deadline=RELOAD_DEADLINE
            )
        except GaveUpError as error:
            if error.__cause__ is None:
                # It goes on, and would change the mount below the task's hands.
                self.spoiled = True
                raise UnreachableError(str(error)) from error
            # Such as a process that still has a file open. What is ours is read through the SDK.
            log.warning("%s; the task may see an older state of %s", error, airflow_settings.volume_mount())

    def _dag_version(self) -> dict[str, str]:
        """Put the DAG code onto local disk and return the variable that names it."""
        bundle = reasons.of_workload(self.call, "bundle_info")
        if bundle.get("name") != names.BUNDLE_NAME:
            return {}
        digest = bundle.get("version") or dag_versions.head(self.container.files)
        if digest is None:
            raise ModalflowError(
                "the environment's Volume holds no DAG version; add the DAG: modalflow dags create"
            )
        dag_copies.materialise(self.container.files, digest, dag_copies.default_root())
        return {dag_versions.HEAD_VARIABLE: digest}

    def _virtualenv(self, digest: str | None) -> dict[str, str]:
        """Put the packages onto local disk that the image lacks, and return the variables that tell of them.

        :param digest: of the DAG version, if the code comes from the Volume.
        """
        root = dag_copies.default_root()
        wanted = venvs.wanted(self.call, dag_copies.local_path(root, digest) if digest else None)
        if not wanted:
            return {}
        available = Venvs(
            self.container.files, self.container.state, holder=self.container.id, note=self.log.note
        )
        return venvs.environment(available, wanted, self.call, self.started_at, self.cancelled)


def _went_well(outcome: Outcome | None) -> bool:
    """Whether the task ended as it should, although it had been told to stop."""
    return outcome is not None and outcome.error is None and outcome.result.get("state") in _ENDS_WELL


_ENDS_WELL = frozenset({"success", "skipped", "deferred", "up_for_reschedule", "awaiting_input"})
"""States that a task gives itself, and that a stop which came too late does not make a failure."""
_CANCELLED = "cancelled: the function call was cancelled before the task ended"

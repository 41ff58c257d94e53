"""How do task calls get to Modal, and their ends back, without the scheduler ever waiting?

A thread with an event loop of its own talks to Modal; the scheduler's thread only posts orders and drains
reports, both in memory. An unreachable Modal blocks a call for up to a minute, and a scheduler loop that is
blocked for half of that is declared dead by its peers.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_modal import wire
from airflow_provider_modal.executors import reports
from airflow_provider_modal.executors.cancelling import Cancelling
from airflow_provider_modal.executors.deployed import Deployed
from airflow_provider_modal.executors.function_options import FunctionOptions
from airflow_provider_modal.executors.gateway import Gateway
from airflow_provider_modal.executors.metrics import Metrics
from airflow_provider_modal.executors.options import Options
from airflow_provider_modal.executors.outage import Outage
from airflow_provider_modal.executors.questions import Question, answers, ended
from airflow_provider_modal.executors.reason_log import ReasonLog
from airflow_provider_modal.executors.submit_errors import backoff, classify
from airflow_provider_modal.executors.threads import on_daemon_thread

log = logging.getLogger(__name__)

QUESTIONS_AT_ONCE = 16
LET_GO = 2.0
"""Seconds that the SDK gets to let go of calls that are no longer wanted."""
THREAD_END = 5.0
"""Seconds that ending the loop itself may take."""


@dataclass(frozen=True)
class Submission:
    """An order to start a function call.

    :param function: name of the function in the environment's App.
    :param patience: for how many seconds to repeat it when Modal does not answer.
    :param options: what of the function this task wants otherwise.
    :param ordered_at: when the order was given, by the monotonic clock.
    """

    call: wire.TaskCall
    function: str
    patience: float
    options: FunctionOptions = field(default_factory=FunctionOptions)
    ordered_at: float = field(default_factory=time.monotonic)


@dataclass
class _Progress:
    """A submission under way."""

    revoked: asyncio.Event = field(default_factory=asyncio.Event)
    why: str = ""
    """Why it was revoked."""
    pausing: bool = False
    """It failed in passing and waits for its next attempt."""
    doubtful: bool = False
    """An attempt ended without saying whether it started a function call."""


class Dispatcher:
    """Submits, collects, asks and cancels in the background.

    ``start``, ``stop`` and the orders belong to the scheduler's thread; orders given before ``start`` are
    carried out by it, those after ``stop`` are dropped (the next scheduler adopts what they were about).

    :param metrics: takes how submitting goes.
    """

    def __init__(self, gateway: Gateway, options: Options, metrics: Metrics | None = None) -> None:
        self._gateway = gateway
        self._options = options
        self._metrics = metrics or Metrics()
        self._reports: deque[reports.Report | reports.Malformed] = deque()
        self._news = threading.Event()
        self._early: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = False
        # What follows belongs to the loop's thread.
        self._tasks: set[asyncio.Task[None]] = set()
        self._progress: dict[str, _Progress] = {}
        self._cancelling = Cancelling(gateway, self._report)
        self._reasons = ReasonLog(lambda: gateway.files())
        self._listening: set[str] = set()
        self._learning = False
        self._ending: asyncio.Event
        self._outage: Outage
        self._submit_slots: asyncio.Semaphore
        self._question_slots: asyncio.Semaphore

    # Orders, for the scheduler's thread.

    def start(self) -> None:
        """Start the thread."""
        started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(started)), name="modal-dispatcher", daemon=True
        )
        self._thread.start()
        started.wait()

    def submit(self, submission: Submission) -> None:
        """Start a function call; reports ``Submitted`` or ``NotSubmitted``."""
        self._post(lambda: self._begin(self._submit(submission)))

    def listen(self, partition: str) -> None:
        """Collect the completion events of a partition from now on; reports ``Ended``."""
        self._post(lambda: self._listen(partition))

    def learn(self, deployed: Deployed) -> None:
        """Read the environment's deployment manifest, in the end with success; once at a time."""
        self._post(lambda: self._begin(self._learn(deployed)))

    def ask(self, question: Question) -> None:
        """Find out what became of a dispatch.

        Reports ``Ended``, ``Alive``, ``Waiting``, ``NotStarted``, ``Unknown`` or ``Unanswered``; before it
        ``Submitted``, if the call's id had to be looked up.
        """
        self._post(lambda: self._begin(self._ask(question)))

    def take_back(self, dispatch: str, call_id: str, why: str) -> None:
        """Have a call never start that no container has taken; reports ``NotStarted``, ``Alive`` if one takes
        it meanwhile, or ``Unanswered``.

        :param why: for the user.
        """
        self._post(lambda: self._begin(self._cancelling.take_back(dispatch, call_id, why)))

    def cancel(self, dispatch: str, call_id: str | None, why: str) -> None:
        """Make sure that a dispatch doesn't run (any more); reports ``Cancelled`` once its call is over.

        :param why: for the task's log.
        """
        self._post(lambda: self._cancel(dispatch, call_id, why))

    def finish_cancel(self, dispatch: str, call_id: str | None, seconds: float) -> None:
        """Do the second step of a cancellation that another scheduler began; reports ``Cancelled``.

        :param seconds: what is left of the call's grace.
        """
        self._post(lambda: self._begin(self._cancelling.finish(dispatch, call_id, seconds)))

    def explain(self, key: wire.TaskKey, dispatch: str, reason: str) -> None:
        """Write into a try's log why it failed, where its worker can't; reports nothing."""
        self._post(lambda: self._begin(self._reasons.write(key, dispatch, reason)))

    def drain(self) -> list[reports.Report | reports.Malformed]:
        """Take all reports made so far, oldest first."""
        # Cleared first: a report made in between sets it again.
        self._news.clear()
        taken = []
        while self._reports:
            taken.append(self._reports.popleft())
        return taken

    @property
    def has_reports(self) -> bool:
        """Whether ``drain`` would return something."""
        return bool(self._reports)

    def wait_for_event(self, timeout: float) -> bool:
        """Wait until there are reports, at most ``timeout`` seconds; return whether there are."""
        return self._news.wait(timeout)

    def stop(self, flush: float) -> None:
        """End the thread; cancels no function call.

        :param flush: seconds that calls on their way to Modal get to arrive. What still waits for Modal to
            come back stays queued in Airflow's database, where the next scheduler finds it.
        """
        if self._thread is None or self._ended:
            self._ended = True
            return
        loop = self._loop
        assert loop is not None
        self._ended = True
        loop.call_soon_threadsafe(lambda: self._begin(self._flush(flush)))
        self._thread.join(flush + THREAD_END)
        if self._thread.is_alive():
            log.warning("the thread that talks to Modal has not ended within %.0f s", flush + THREAD_END)

    def _post(self, order: Callable[[], None]) -> None:
        if self._ended:
            log.debug("order dropped: the dispatcher has ended")
        elif self._loop is None:
            self._early.append(order)
        else:
            self._loop.call_soon_threadsafe(order)

    # The loop's thread.

    async def _main(self, started: threading.Event) -> None:
        self._ending = asyncio.Event()
        self._outage = Outage()
        self._submit_slots = asyncio.Semaphore(self._options.submit_concurrency)
        self._question_slots = asyncio.Semaphore(QUESTIONS_AT_ONCE)
        for order in self._early:
            order()
        self._early.clear()
        self._loop = asyncio.get_running_loop()
        started.set()
        await self._ending.wait()
        await self._let_go()

    async def _let_go(self) -> None:
        """Cancel what is under way and wait until the SDK has let go of it.

        ``asyncio.run`` would cancel each task and also those it waits for. The SDK hands a first cancellation
        over to its own thread; at a second one it stops waiting for that, and leaves coroutines behind that
        never ran.
        """
        under_way = list(self._tasks)
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way, timeout=LET_GO)
        await self._gateway.close()

    async def _flush(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (self._progress or self._cancelling.urgent or self._reasons.busy) and time.monotonic() < ends:
            for progress in self._progress.values():
                if progress.pausing:
                    progress.revoked.set()
            await asyncio.sleep(0.01)
        self._ending.set()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a background task of the executor failed", exc_info=task.exception())

    def _report(self, report: reports.Report | reports.Malformed) -> None:
        self._reports.append(report)
        self._news.set()

    async def _submit(self, submission: Submission) -> None:
        dispatch = submission.call.dispatch
        progress = self._progress[dispatch] = _Progress()
        try:
            call_id = await self._spawned(submission, progress)
            if call_id is None:
                return
            if progress.revoked.is_set():
                self._begin(self._cancelling.end(dispatch, call_id, progress.why))
            else:
                self._report(reports.Submitted(dispatch, call_id, doubtful=progress.doubtful))
            try:
                await self._gateway.note_call(dispatch, call_id)
            except Exception as error:
                # Only a scheduler that finds the dispatch without its call's id misses it; it queues again.
                log.warning("could not note function call %s of dispatch %s: %s", call_id, dispatch, error)
        except Exception as error:
            # Nothing foreseen: everything that Modal may say is dealt with in _spawned.
            log.exception("submission of dispatch %s failed", dispatch)
            why = f"the task call could not be submitted: {error!r}"
            self._report(reports.NotSubmitted(dispatch, why, doubtful=progress.doubtful))
        finally:
            self._progress.pop(dispatch, None)

    async def _spawned(self, submission: Submission, progress: _Progress) -> str | None:
        """Start the function call and return its id; None when it was revoked or reported as impossible.

        A Modal that takes no more is waited for, one that does not answer only for so long: the task stays
        queued meanwhile.

        A deadline can pass although Modal has started the call: its answer was late or lost. Repeating is
        safe all the same, because the repetition carries the same dispatch: of two calls of one dispatch
        the worker's claim, and behind it Airflow's own compare-and-set, lets one run.
        """
        dispatch = submission.call.dispatch
        message = submission.call.to_wire()
        attempt = 0
        until = time.monotonic() + submission.patience
        while True:
            async with self._submit_slots:
                if progress.revoked.is_set():
                    self._report(reports.Cancelled(dispatch))
                    return None
                attempt += 1
                try:
                    call_id = await self._gateway.spawn(submission.function, message, submission.options)
                    self._outage.answered()
                    self._metrics.submitted(time.monotonic() - submission.ordered_at)
                    return call_id
                except Exception as error:
                    self._metrics.failed(error)
                    verdict = classify(error, self._gateway.resources)
                    progress.doubtful |= verdict.ambiguous
                    if verdict.retry:
                        self._outage.failed(f"tasks can't be handed to Modal: {verdict.reason}")
            delay = backoff(attempt, verdict.wait)
            if verdict.pressure:
                until = time.monotonic() + delay + submission.patience
            if not verdict.retry or until - time.monotonic() < delay:
                why = verdict.reason
                if verdict.retry:
                    why += f"; given up after {attempt} attempts, see [modal] submit_deadline; clear the task"
                self._report(reports.NotSubmitted(dispatch, why, doubtful=progress.doubtful))
                return None
            log.debug("dispatch %s, attempt %d: %s; pause %.1f s", dispatch, attempt, verdict.reason, delay)
            progress.pausing = True
            await self._outage.pause(delay, progress.revoked)
            progress.pausing = False

    def _listen(self, partition: str) -> None:
        if partition not in self._listening:
            self._listening.add(partition)
            self._begin(self._collect(partition))

    async def _collect(self, partition: str) -> None:
        """Take events for ever.

        Taking is not repeatable: events in an answer that gets lost are gone. Their dispatches go silent and
        are asked about; the worker leaves every result in the state Dict as well.
        """
        failures = 0
        while True:
            try:
                messages = await self._gateway.events(partition)
            except Exception as error:
                failures += 1
                self._outage.failed(
                    f"no completion events: {classify(error, self._gateway.resources).reason}"
                )
                await self._outage.pause(backoff(failures))
                continue
            failures = 0
            self._outage.answered()
            for message in messages:
                try:
                    self._report(ended(wire.Completion.from_wire(message)))
                except wire.WireError as error:
                    log.error("an event in partition %s was dropped: %s", partition, error)
                    self._report(reports.Malformed(str(error)))

    async def _learn(self, deployed: Deployed) -> None:
        if self._learning:
            return
        self._learning = True
        attempt = 0
        while True:
            try:
                # The Volume's interface is a blocking one, and nobody is to wait for it at the end.
                await on_daemon_thread(deployed.read_manifest, "modal-manifest")
                break
            except Exception as error:
                attempt += 1
                log.log(
                    logging.WARNING if attempt == 1 else logging.DEBUG,
                    "the deployment of environment %s is not known yet: %s",
                    deployed.resources.env,
                    str(error) or type(error).__name__,
                )
                if deployed.settled:
                    break
                await asyncio.sleep(backoff(attempt))
        self._learning = False

    async def _ask(self, question: Question) -> None:
        async with self._question_slots:
            try:
                for report in await answers(self._gateway, question):
                    self._report(report)
            except Exception as error:
                log.warning(
                    "no answer from Modal about dispatch %s: %s",
                    question.dispatch,
                    str(error) or type(error).__name__,
                )
                self._report(reports.Unanswered(question.dispatch))

    def _cancel(self, dispatch: str, call_id: str | None, why: str) -> None:
        progress = self._progress.get(dispatch)
        if progress is not None:
            # Before the call it ends there; during the call it is cancelled once its id is known.
            progress.why = why
            progress.revoked.set()
        if progress is None or call_id is not None:
            self._begin(self._cancelling.end(dispatch, call_id, why))

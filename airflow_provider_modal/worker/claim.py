"""May this delivery of a dispatch run it?

Modal starts an input again after a crash or preemption, so the same call may arrive twice, and both copies
may even live for a while. The first one puts ``claim:{dispatch}`` into the state Dict; what a later one finds
there says what happened:

=========================  =====================================================================
found                      meaning
=========================  =====================================================================
nothing                    first delivery: run
own token                  the answer to our own claim was lost: run
another, and a result      the former delivery ended and reported; Modal just never got its answer: repeat
                           that report
phase ``claimed``          the former delivery died before it started anything: take over
phase ``started``, alive   the former delivery still runs: leave it alone
phase ``started``, silent  user code may have run: report the loss, or run again where that is
                           allowed (``on_container_loss: rerun``), a bounded number of times
=========================  =====================================================================

Alive is a claim that changes: whoever runs a task renews its claim every few seconds (``Beat``). To report a
loss while the former copy is healthy would make Airflow fail a task that runs.

The Dict explains; what decides in the end is Airflow's own compare-and-set when a task starts. So a Dict that
does not answer is no reason to fail a task.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from airflow_provider_modal import names, wire
from airflow_provider_modal.errors import UnreachableError
from airflow_provider_modal.side_thread import beside
from airflow_provider_modal.worker.patience import DEADLINE, GaveUpError, patiently

log = logging.getLogger(__name__)

RERUN = "executor_config={'modal': {'on_container_loss': 'rerun'}}"
MAX_DELIVERIES = 3
"""How often a dispatch whose containers keep dying is run with ``on_container_loss: rerun``."""
BEATS_UNTIL_LOST = 6
"""A started claim that did not change for so many beats is a lost container's. One renewal that fails makes a
gap of two; this is three times as long."""
_BEAT_DEADLINE = 0.8
"""Part of a beat that one renewal may take: the next one comes in time, whatever became of it."""
_LOOK_SECONDS = 1.0
"""Between two looks at another delivery's claim, at most."""
_AT_ONCE_SECONDS = 1.0
"""No delivery takes another one's claim over so soon: Modal first has to miss its container."""
DECIDED_BY_AIRFLOW: frozenset[wire.Kind] = frozenset({"task", "command"})
"""Kinds of workloads that Airflow's database lets start only once."""
_MEASURE_SECONDS = 0.5
"""How often the container's memory is measured; a task can use up all of it within a beat."""


class State(Protocol):
    """The part of ``modal.Dict`` that claims need."""

    def put(self, key: str, value: dict[str, object], *, skip_if_exists: bool = False) -> bool:
        """Put a value; with ``skip_if_exists`` return False where there is one."""

    def get(self, key: str) -> dict[str, object] | None:
        """Return a value or None."""


@dataclass(frozen=True)
class Verdict:
    """What a delivery is to do.

    :param run: run the task.
    :param claim: ours, if it could be put or there was nothing to put it beside.
    :param lost_container: Modal task id of the container that started the task before and is lost.
    :param lost_memory: MiB that it used at most, as far as it is known.
    :param reason: for ``run=False``: what happened and what to do.
    :param obsolete: for ``run=False``: another delivery runs the task; nothing is lost.
    :param reported: for ``run=False``: what another delivery reported at its end.
    """

    run: bool
    claim: wire.Claim
    lost_container: str | None = None
    lost_memory: int | None = None
    reason: str | None = None
    obsolete: bool = False
    reported: wire.Completion | None = None


def decide(call: wire.TaskCall, own: wire.Claim, found: wire.Claim | None) -> Verdict:
    """Return what to do when the Dict holds ``found``, which nobody renews; the table of this module."""
    if found is None or found.token == own.token:
        return Verdict(True, own)
    ours = replace(own, deliveries=found.deliveries + 1)
    if found.phase == "claimed":
        return Verdict(True, ours)
    lost = (
        f"container {found.container}, which ran this task, was lost (crashed, preempted, out of memory or "
        "stopped by Modal)"
    )
    if call.on_container_loss != "rerun":
        return Verdict(
            False,
            ours,
            found.container,
            found.memory,
            f"{lost}; user code may have run, so it was not started again. If the task can run twice, give "
            f"it retries or {RERUN}",
        )
    if found.deliveries >= MAX_DELIVERIES:
        return Verdict(
            False,
            ours,
            found.container,
            found.memory,
            f"{lost}, as were {found.deliveries - 1} before; it is not started again after {MAX_DELIVERIES}. "
            "Look at the function call's log in Modal for what ends its containers",
        )
    return Verdict(True, ours, found.container, found.memory)


def claim(state: State, call: wire.TaskCall, token: str, container: str) -> Verdict:
    """Claim a dispatch for this delivery.

    :param token: random, new for each delivery.
    :param container: Modal task id of this container.
    """
    key = names.claim_key(call.dispatch)
    own = wire.Claim(token=token, phase="claimed", container=container, at=time.time())
    try:
        if patiently("claim the dispatch", lambda: state.put(key, own.to_wire(), skip_if_exists=True)):
            return Verdict(True, own)
        found = _read(state, key)
        if found is not None and found.token != token:
            ended = _ended(state, call, own, found)
            if ended is None and found.phase == "started":
                holder, ended = _watch(state, call, own, found)
                if holder is not None:
                    reason = (
                        f"container {holder.container} runs this task; this is a second delivery of its call"
                    )
                    return Verdict(False, own, reason=reason, obsolete=True)
            if ended is not None:
                return ended
        verdict = decide(call, own, found)
    except (GaveUpError, wire.WireError) as error:
        if call.kind not in DECIDED_BY_AIRFLOW:
            raise UnreachableError(
                f"{error}; it was not run, because nothing else keeps a {call.kind} from running twice"
            ) from error
        log.warning("%s; Airflow's database decides alone whether this copy may run", error)
        return Verdict(True, own)
    if verdict.run:
        _put(state, key, verdict.claim, "take over the dispatch")
    return verdict


def reported_meanwhile(state: State, call: wire.TaskCall, verdict: Verdict) -> Verdict | None:
    """Look once more, right before a later delivery starts, whether the former one has reported its end.

    One that is preempted before it could start anything reports that as well, and the scheduler may have
    queued the task's next try by now: Airflow's compare-and-set would take this delivery for that try's.
    """
    if verdict.claim.deliveries == 1:
        return None
    try:
        raw = patiently("read the dispatch's result", lambda: state.get(names.result_key(call.dispatch)))
        reported = wire.Completion.from_wire(raw) if raw is not None else None
    except (GaveUpError, wire.WireError) as error:
        log.warning("%s; Airflow's database decides alone whether this copy may run", error)
        return None
    if reported is None:
        return None
    reason = f"container {reported.container} has reported the end of this dispatch meanwhile; it is not run"
    return replace(verdict, run=False, reason=reason, reported=reported)


def taken_over(state: State, call: wire.TaskCall, verdict: Verdict) -> Verdict | None:
    """Look right before the start whether another delivery has taken this one's claim over.

    It may while this one gets ready, because nobody renews a claim until then. Airflow's compare-and-set
    stops this one as well, unless the task was deferred or queued again meanwhile: then it would take this
    delivery for the later dispatch's. So a task whose start comes at once is not worth the question.

    :raises UnreachableError: the Dict does not answer, and nothing else keeps a callback from running twice.
    """
    decided_by_airflow = call.kind in DECIDED_BY_AIRFLOW
    if decided_by_airflow and time.time() - verdict.claim.at < _AT_ONCE_SECONDS:
        return None
    try:
        found = _read(state, names.claim_key(call.dispatch))
    except (GaveUpError, wire.WireError) as error:
        if not decided_by_airflow:
            raise UnreachableError(str(error)) from error
        log.warning("%s; Airflow's database decides alone whether this copy may run", error)
        return None
    if found is None or found.token == verdict.claim.token:
        return None
    reason = f"container {found.container} has taken this call over while this one was getting ready"
    return replace(verdict, run=False, reason=reason, obsolete=True)


@contextmanager
def started(
    state: State,
    call: wire.TaskCall,
    claim: wire.Claim,
    *,
    memory_used: Callable[[], int | None] = lambda: None,
    memory_alarm: float = float("inf"),
) -> Iterator[None]:
    """Say that user code may run from now on, and until the end of the block that it still may.

    To be entered right before user code can run.

    :param memory_used: measures the container's memory, in MiB; the most is part of the claim.
    :param memory_alarm: how many MiB are worth a renewal at once: the next one may come too late.
    """
    key = names.claim_key(call.dispatch)
    every = beat_seconds(call)
    most: int | None = None

    def current() -> wire.Claim:
        return replace(claim, phase="started", at=time.time(), memory=most)

    _put(state, key, current(), "mark the dispatch as started")

    def beat(over: threading.Event) -> None:
        nonlocal most
        due = time.monotonic() + every
        alarmed = False
        while not over.wait(min(max(due - time.monotonic(), 0), _MEASURE_SECONDS)):
            most = max(filter(None, (most, memory_used())), default=None)
            alarm = not alarmed and (most or 0) >= memory_alarm
            if not alarm and time.monotonic() < due:
                continue
            alarmed |= alarm
            due += 0 if alarm else every
            deadline = _BEAT_DEADLINE * every
            _put(state, key, current(), "renew the dispatch's claim", repeat=False, deadline=deadline)

    # Waited for without a bound: a renewal that comes after a later delivery's claim would overwrite it. One
    # that was abandoned because Modal did not answer still may, as the SDK goes on repeating it; the next
    # renewal of that delivery puts it right.
    with beside("claim-beat", beat):
        yield


def beat_seconds(call: wire.TaskCall) -> float:
    """Return how often a running delivery of a call renews its claim."""
    return call.lost_after / BEATS_UNTIL_LOST


def _watch(
    state: State, call: wire.TaskCall, own: wire.Claim, found: wire.Claim
) -> tuple[wire.Claim | None, Verdict | None]:
    """Return the claim of a delivery that lives, or what to do as it has reported its end; neither of them
    once it has been silent for long enough."""
    key = names.claim_key(call.dispatch)
    ends = time.monotonic() + call.lost_after
    while time.monotonic() < ends:
        time.sleep(min(_LOOK_SECONDS, beat_seconds(call)))
        now = _read(state, key)
        # After the claim: its silence may be that of its end.
        ended = _ended(state, call, own, found)
        if ended is not None:
            return None, ended
        if now is not None and (now.token, now.at) != (found.token, found.at):
            return now, None
    return None, None


def _ended(state: State, call: wire.TaskCall, own: wire.Claim, found: wire.Claim) -> Verdict | None:
    """Return what to do if the delivery that holds the claim has reported its end."""
    raw = patiently("read the dispatch's result", lambda: state.get(names.result_key(call.dispatch)))
    if raw is None:
        return None
    reason = f"container {found.container} had run this task to its end and reported it; it is not run again"
    return Verdict(False, own, reason=reason, reported=wire.Completion.from_wire(raw))


def _read(state: State, key: str) -> wire.Claim | None:
    raw = patiently("read the dispatch's claim", lambda: state.get(key))
    return wire.Claim.from_wire(raw) if raw is not None else None


def _put(
    state: State, key: str, claim: wire.Claim, what: str, *, repeat: bool = True, deadline: float = DEADLINE
) -> None:
    try:
        patiently(what, lambda: state.put(key, claim.to_wire()), repeat=repeat, deadline=deadline)
    except GaveUpError as error:
        log.warning("%s; Airflow's database decides alone about another delivery", error)

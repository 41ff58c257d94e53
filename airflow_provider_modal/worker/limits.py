"""How long may a supervised task run, and how is it stopped?

Gently at first: SIGTERM to the supervisor, which passes it to the task, so that the operator's ``on_kill``
runs and the log is complete; then, after a grace period, everything is killed. In Airflow 3 SIGTERM does no
more than that: a plain Python function, which has no ``on_kill``, always runs on until it is killed. Modal's
own timeout, which takes the container away without a word, is longer by ``config.CALL_MARGIN_SECONDS``. When
Modal takes a container away for its own reasons (preemption), it says so and leaves a short while.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Literal

from airflow_provider_modal.container.zygote import Child, Outcome

log = logging.getLogger(__name__)

GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL."""
PREEMPTION_GRACE = 15.0
"""The same once Modal takes the container away. Modal's guide names no figure for how long it waits; the
report must fit into it, too."""
_POLL = 0.25
"""Seconds within which a cancellation is noticed; a child's end is noticed at once."""

Stop = Literal["timeout", "cancelled", "preempted"]


@dataclass
class Cancellation:
    """Whether somebody wants the running input to end.

    :param requested: it was cancelled.
    :param preempted: Modal takes the container away and will start the input again in another one.
    :param interruptible: nothing needs to be stopped or reported yet, so ``KeyboardInterrupt`` may do its
        work at once when the container is taken away.
    """

    requested: bool = False
    preempted: bool = False
    interruptible: bool = False

    @property
    def stop(self) -> Stop | None:
        """Why a task must be stopped, if it must."""
        if self.preempted:
            return "preempted"
        return "cancelled" if self.requested else None


@dataclass(frozen=True)
class Ending:
    """How a supervised child ended.

    :param stopped: why it was told to stop, if it was.
    :param killed: it had to be killed after the grace period.
    """

    outcome: Outcome
    stopped: Stop | None = None
    killed: bool = False


def await_end(
    child: Child,
    timeout: float,
    cancelled: Cancellation,
    *,
    grace: float = GRACE,
    on_stop: Callable[[Stop], None] = lambda _stop: None,
    on_kill: Callable[[float], None] = lambda _grace: None,
) -> Ending:
    """Wait for a child's end; stop it when it takes too long, is cancelled or loses its container.

    :param timeout: seconds it may run.
    :param cancelled: looked at several times a second.
    :param grace: seconds between SIGTERM and SIGKILL; ``PREEMPTION_GRACE`` if that is less for a container
        that is taken away.
    :param on_stop: called before SIGTERM is sent; for a line in the task's log.
    :param on_kill: called with ``grace`` before SIGKILL is sent, if it must be; for another line.
    """
    ends = time.monotonic() + timeout
    stop: Stop
    while True:
        left = ends - time.monotonic()
        outcome = child.wait(min(max(left, 0), _POLL))
        if outcome is not None:
            return Ending(outcome)
        if cancelled.stop is not None:
            stop = cancelled.stop
            break
        if left <= 0:
            stop = "timeout"
            break
    on_stop(stop)
    child.send_signal(signal.SIGTERM)
    outcome, waited = _await_stop(child, grace, cancelled)
    if outcome is not None:
        return Ending(outcome, stop)
    log.warning("pid %d did not end within %g s after SIGTERM and is killed", child.pid, waited)
    on_kill(waited)
    child.kill()
    outcome = child.wait(grace)
    return Ending(outcome or Outcome(error="it could not be killed"), stop, killed=True)


def _await_stop(child: Child, grace: float, cancelled: Cancellation) -> tuple[Outcome | None, float]:
    """Wait for the end of a child that was told to stop; return it and the grace that it had."""
    started = time.monotonic()
    ends, shortened = started + grace, False
    while True:
        if cancelled.preempted and not shortened:
            ends, shortened = min(ends, time.monotonic() + PREEMPTION_GRACE), True
        left = ends - time.monotonic()
        outcome = child.wait(min(max(left, 0), _POLL))
        if outcome is not None or left <= 0:
            return outcome, round(ends - started, 1)


@contextmanager
def cancellation() -> Iterator[Cancellation]:
    """Note Modal's cancellation of the running input, and the loss of its container, instead of being
    interrupted by them.

    For a cancellation Modal sends SIGUSR1 to the main thread, whose handler raises ``InputCancellation``
    wherever that happens to be, again and again until the input ends; stopping a task takes longer than that.
    For a preemption it sends SIGINT and kills the container a while later
    (https://modal.com/docs/guide/preemption); whoever has noted it must raise ``KeyboardInterrupt`` in the
    end, with which Modal's runtime ends. Off the main thread there is nothing to catch: Modal runs
    synchronous functions in it.
    """
    found = Cancellation()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return

    def note(_signum: int, _frame: FrameType | None) -> None:
        found.requested = True

    def note_preemption(_signum: int, _frame: FrameType | None) -> None:
        found.preempted = True
        if found.interruptible:
            raise KeyboardInterrupt

    former = {
        signum: signal.signal(signum, handler)
        for signum, handler in ((signal.SIGUSR1, note), (signal.SIGINT, note_preemption))
    }
    try:
        yield found
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)

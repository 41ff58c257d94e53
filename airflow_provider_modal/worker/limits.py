"""How long may a supervised task run, and how is it stopped?

Gently at first: SIGTERM to the supervisor, which passes it to the task, so that the operator's ``on_kill``
runs and the log is complete; then, after a grace period, everything is killed. In Airflow 3 SIGTERM does no
more than that: a plain Python function, which has no ``on_kill``, always runs on until it is killed. Modal's
own timeout is longer than the limit by a minute: it would take the container away without a word.
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
_POLL = 0.25
"""Seconds within which a cancellation is noticed; a child's end is noticed at once."""

Stop = Literal["timeout", "cancelled"]


@dataclass
class Cancellation:
    """Whether somebody cancelled the running input."""

    requested: bool = False


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
    """Wait for a child's end; stop it when it takes too long or is cancelled.

    :param timeout: seconds it may run.
    :param cancelled: looked at several times a second.
    :param grace: seconds between SIGTERM and SIGKILL.
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
        if cancelled.requested:
            stop = "cancelled"
            break
        if left <= 0:
            stop = "timeout"
            break
    on_stop(stop)
    child.send_signal(signal.SIGTERM)
    outcome = child.wait(grace)
    if outcome is not None:
        return Ending(outcome, stop)
    log.warning("pid %d did not end within %g s after SIGTERM and is killed", child.pid, grace)
    on_kill(grace)
    child.kill()
    outcome = child.wait(grace)
    return Ending(outcome or Outcome(error="it could not be killed"), stop, killed=True)


@contextmanager
def cancellation() -> Iterator[Cancellation]:
    """Note Modal's cancellation of the running input instead of being interrupted by it.

    Modal sends SIGUSR1 to the main thread, whose handler raises ``InputCancellation`` wherever that happens
    to be, again and again until the input ends; stopping a task takes longer than that. Off the main thread
    there is nothing to catch: Modal runs synchronous functions in it.
    """
    found = Cancellation()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return

    def note(_signum: int, _frame: FrameType | None) -> None:
        found.requested = True

    former = signal.signal(signal.SIGUSR1, note)
    try:
        yield found
    finally:
        signal.signal(signal.SIGUSR1, former)

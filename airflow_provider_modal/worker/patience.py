"""How long may a call to Modal take that a task could also do without?

Claim, result, event and wake-up explain and speed up; Airflow's database decides. So none of these calls may
fail a task or hold it up for long: each gets a few attempts and a deadline. The SDK itself would wait for
57 s when Modal can't be reached.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

DEADLINE = 10.0
"""Seconds for one call with its repetitions."""
_PAUSES = (0.2, 1.0)


class GaveUpError(Exception):
    """The call did not succeed in time; the text says why."""


def patiently(what: str, call: Callable[[], T], *, repeat: bool = True, deadline: float = DEADLINE) -> T:
    """Return what ``call`` returns, repeating it when it fails, or give up.

    An attempt that hangs is abandoned, not interrupted: ``call`` may still take effect later, so it must be
    one that can be repeated.

    :param what: what is done, for messages: "claim the dispatch".
    :param repeat: try again after a failure.
    :param deadline: seconds for all attempts together.
    :raises GaveUpError: no attempt succeeded in time.
    """
    ends = time.monotonic() + deadline
    for pause in (*(_PAUSES if repeat else ()), None):
        attempt = _Attempt(call)
        threading.Thread(target=attempt.run, name=f"patiently: {what}", daemon=True).start()
        if not attempt.done.wait(max(ends - time.monotonic(), 0.01)):
            raise GaveUpError(f"could not {what}: no answer within {deadline:g} s")
        if attempt.error is None:
            return attempt.result
        reason = f"{type(attempt.error).__name__}: {attempt.error}"
        if pause is None or time.monotonic() + pause >= ends:
            raise GaveUpError(f"could not {what}: {reason}") from attempt.error
        log.warning("could not %s (%s); next attempt in %.1f s", what, reason, pause)
        time.sleep(pause)
    raise AssertionError("unreachable")


class _Attempt(Generic[T]):
    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self.done = threading.Event()
        self.error: Exception | None = None
        self.result: T

    def run(self) -> None:
        try:
            self.result = self._call()
        except Exception as error:
            self.error = error
        finally:
            self.done.set()

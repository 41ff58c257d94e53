"""Runs checks: those that measure times one after the other, the rest side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue

from cloud.findings import Check, Finding, Seen, unchecked
from cloud.session import Session


class Deadline:
    """The time that is left for a whole run."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, at least 0."""
        return max(0.0, self._ends - time.monotonic())


def run(
    session: Session, checks: Sequence[Check], recorded: dict[str, str], *, seconds: float, at_once: int
) -> Iterator[Finding]:
    """Yield a finding per check, as they come; one that fails or takes too long could not be made.

    Args:
        seconds: for all of them.
        at_once: how many run side by side.
    """
    deadline = Deadline(seconds)

    def finding(check: Check, seen: Seen) -> Finding:
        return Finding(check, seen, recorded.get(check.name, ""))

    for check in checks:
        if check.quiet:
            yield finding(check, _look(check, session, deadline))
    loud = [check for check in checks if not check.quiet]
    # Those that may take long first: the whole takes as long as the longest.
    waiting: SimpleQueue[Check] = SimpleQueue()
    for check in sorted(loud, key=lambda check: -check.seconds):
        waiting.put(check)
    done: SimpleQueue[Finding] = SimpleQueue()

    def work() -> None:
        while True:
            try:
                check = waiting.get_nowait()
            except Empty:
                return
            done.put(finding(check, _look(check, session, deadline)))

    for _ in range(min(at_once, len(loud))):
        threading.Thread(target=work, daemon=True).start()
    for _ in loud:
        yield done.get()


def _look(check: Check, session: Session, deadline: Deadline) -> Seen:
    seconds = min(check.seconds, deadline.left())
    if seconds <= 0:
        return unchecked("No time was left for it.")
    return _within(seconds, lambda: check.look(session))


def _within(seconds: float, look: Callable[[], Seen]) -> Seen:
    outcome: SimpleQueue[Seen] = SimpleQueue()

    def attempt() -> None:
        try:
            outcome.put(look())
        except Exception as error:
            text = (str(error).strip().splitlines() or [""])[0][:300]
            outcome.put(unchecked(f"It failed: {type(error).__name__}: {text}"))

    # A daemon: a call that never returns must not keep the process.
    threading.Thread(target=attempt, daemon=True).start()
    try:
        return outcome.get(timeout=seconds)
    except Empty:
        return unchecked(f"It took longer than {seconds:.0f} s.")

"""How does a process that holds the scheduler's lock have work done, so that none goes on without the lock?

Modal interrupts the entry process in the middle of whatever it does: with ``KeyboardInterrupt`` when it takes
the container away, with ``InputCancellation`` when the call is cancelled. The lock is given up on the way
out, so the child must have ended before.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_modal.container.zygote import Child, Zygote

log = logging.getLogger(__name__)

KILLED_SECONDS = 60.0
"""How long to wait for the end of a child that was killed; longer takes only what the kernel can't end."""
_INTERRUPTIONS = (signal.SIGINT, signal.SIGUSR1)


@contextmanager
def child_of(
    zygote: Zygote, target: str, args: Mapping[str, Any], env: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Run a target in a child that does not outlive the block, however the block ends.

    A child that still works then is killed, and its end awaited.

    :raises ZygoteError: no child could be made.
    """
    child = None
    try:
        child = zygote.spawn(target, args, env)
        yield child
    except Exception:
        raise
    except BaseException:
        if child is None:
            # Interrupted between the fork and its being known here.
            with _undisturbed():
                zygote.stop()
        raise
    finally:
        if child is not None and child.wait(0) is None:
            with _undisturbed():
                child.kill()
                if child.wait(KILLED_SECONDS) is None:
                    log.error("pid %d was killed and has not ended in %g s", child.pid, KILLED_SECONDS)


class Worker:
    """The child that works for a lock's holder; none lives on once the lock is lost."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._child: Child | None = None
        self._ended = False

    @contextmanager
    def is_(self, child: Child) -> Iterator[None]:
        """Let ``child`` be the one that works, for the time of the block."""
        self._set(child)
        try:
            yield
        finally:
            self._set(None)

    def end(self) -> None:
        """Kill the child that works, and any that would begin to."""
        with self._changing:
            self._ended = True
            if self._child is not None:
                self._child.kill()

    def _set(self, child: Child | None) -> None:
        with self._changing:
            self._child = child
            if child is not None and self._ended:
                child.kill()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore further interruptions for the time of the block: Modal repeats a cancellation until it works."""
    if threading.current_thread() is not threading.main_thread():
        # Interruptions reach the main thread only.
        yield
        return
    former = {signum: signal.signal(signum, signal.SIG_IGN) for signum in _INTERRUPTIONS}
    try:
        yield
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)

"""How does a trigger's event reach the scheduler at once?

The event is in the database before anybody is woken. A thread of its own makes the calls to Modal, so that
the loop that serves the triggers never waits for them, and any number of events that come meanwhile make one
more call.
"""

from __future__ import annotations

import logging
import threading

from airflow_provider_modal import names, wakeup

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
ATTEMPTS = 12
"""After so many failures it is left to the schedule."""


class Waker:
    """Wakes the scheduler from a thread; to be started in a process that forks no more."""

    def __init__(self, resources: names.ResourceNames) -> None:
        self._resources = resources
        self._wanted = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="waker", daemon=True)

    def start(self) -> None:
        """Begin to listen, and get the connection to Modal ready."""
        self._thread.start()

    def wake(self) -> None:
        """Have the scheduler woken; returns at once."""
        self._idle.clear()
        self._wanted.set()

    def finish(self, timeout: float) -> None:
        """Wait until all wishes are delivered, at most so many seconds."""
        self._idle.wait(timeout)

    def _run(self) -> None:
        self._connect()
        failures = 0
        while True:
            self._wanted.wait()
            self._wanted.clear()
            try:
                wakeup.request_run(self._resources, "a trigger fired")
                failures = 0
            except Exception as error:
                failures += 1
                log.warning("the scheduler could not be woken: %s: %s", type(error).__name__, error)
                if failures < ATTEMPTS:
                    self._wanted.set()
                    threading.Event().wait(RETRY_SECONDS)
                    continue
                failures = 0
            if not self._wanted.is_set():
                self._idle.set()

    def _connect(self) -> None:
        import modal

        try:
            modal.Dict.from_name(self._resources.state_dict).hydrate()
        except Exception as error:
            log.warning("Modal is not reachable yet: %s: %s", type(error).__name__, error)

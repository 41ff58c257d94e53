"""Who starts the triggerer? Whoever schedules, as soon as something is deferred.

Tasks are deferred while a scheduler run lasts, and would wait for its end; so a thread of the run's entry
process keeps looking. Starting one too many is harmless: it finds nothing to do, or waits in Modal's input
queue for its turn and finds nothing then.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

import psycopg2
from psycopg2.extensions import connection as Connection

from airflow_provider_modal import names
from airflow_provider_modal.triggerer import health, need

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
STARTED_SECONDS = 60.0
"""How long a triggerer that was started may take to show; then another one is started."""
END_SECONDS = 10.0
"""How long the end of a run waits for a start that is under way."""

_started: dict[str, float] = {}
"""When a triggerer was last started, by environment: the container of the scheduler serves many runs."""


class Keeper:
    """Keeps a triggerer alive, for the time of a ``with`` block, while there are triggers.

    :param connection: for short statements; may be used by other threads at the same time.
    """

    def __init__(self, connection: Connection, resources: names.ResourceNames) -> None:
        self._connection = connection
        self._resources = resources
        self._held_until: float | None = None
        """Seconds since the epoch; None until it is asked for, once in a run."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="triggerer-keeper", daemon=True)

    def __enter__(self) -> Keeper:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look for a last time, unless something has gone wrong."""
        self._end.set()
        if kind is None:
            self._thread.join(END_SECONDS)

    def _run(self) -> None:
        ending = False
        while not ending:
            ending = self._end.wait(LOOK_SECONDS)
            try:
                self._keep()
            except psycopg2.Error as error:
                # The lock's holder notices by itself that its connection is gone.
                log.warning("whether a triggerer is needed is unknown: %s", " ".join(str(error).split()))
                return
            except Exception as error:
                log.warning("no triggerer could be started: %s: %s", type(error).__name__, error)

    def _keep(self) -> None:
        found = need.look(self._connection)
        env = self._resources.env
        if found.holder is not None and not need.is_outdated(found.holder, env):
            # What was started has shown; once it is gone, the next one is started at once.
            _started.pop(env, None)
            return
        if not found.waiting:
            return
        if time.monotonic() - _started.get(env, -STARTED_SECONDS) < STARTED_SECONDS:
            return
        if self._is_held():
            return
        if found.holder is not None:
            log.info("the triggerer of a former deployment is ended")
            need.end(self._connection, found.holder)
        start(self._resources, "something is deferred")
        _started[env] = time.monotonic()

    def _is_held(self) -> bool:
        """Tell whether triggerers have failed so often that the next one has to wait."""
        if self._held_until is None:
            self._held_until = self._ask_held_until()
        return time.time() < self._held_until

    def _ask_held_until(self) -> float:
        import modal

        try:
            known = health.read(modal.Dict.from_name(self._resources.state_dict))
        except Exception as error:
            log.warning("whether triggerers failed is unknown: %s: %s", type(error).__name__, error)
            return 0.0
        if known.held_until is None:
            return 0.0
        log.warning("the last %d triggerers failed: %s; the next one waits", known.failures, known.message)
        return known.held_until


def start(resources: names.ResourceNames, reason: str) -> None:
    """Start a triggerer.

    :raises modal.exception.Error: Modal did not answer, or the environment is not deployed.
    """
    import modal

    modal.Function.from_name(resources.app, names.RUN_TRIGGERS).spawn(reason)

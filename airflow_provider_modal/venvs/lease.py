"""Which of many containers makes what all of them want, while the others wait?

The one that put its lease into the environment's state Dict. It renews it while it works; a lease that is
not renewed belongs to a container that died, and whoever notices takes over. A failure is left in it for
those who waited for exactly this work: a hundred tasks with the same mistake in their requirements fail
together, not one after the other.

A lease only saves work. Where the Dict can't be reached, or two take over at once, both work and nothing is
broken (see ``store``).
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from airflow_provider_modal.side_thread import beside

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
LOST_SECONDS = 20.0
"""A lease that was not renewed for so long is free. Seen by the waiting container's own clock."""
LOOK_SECONDS = 1.5


class State(Protocol):
    """The part of ``modal.Dict`` that is needed here."""

    def get(self, key: str, default: Any = None, /) -> Any:
        """Return the value, or the default if there is none."""

    def put(self, key: str, value: Any, *, skip_if_exists: bool = False) -> bool:
        """Store a value and return whether it was stored."""

    def pop(self, key: str, /) -> Any:
        """Remove the key and return its value."""


class FailedElsewhereError(Exception):
    """The work that we waited for failed; ``failure`` is what its holder left."""

    def __init__(self, failure: Mapping[str, Any]) -> None:
        super().__init__(failure)
        self.failure = failure


class Lease:
    """The right to do one piece of work.

    :param key: of the state Dict; names the work.
    :param holder: who works, for messages.
    """

    def __init__(self, state: State, key: str, holder: str) -> None:
        self._state = state
        self._key = key
        self._holder = holder
        self._token = uuid.uuid4().hex
        self._beats = 0
        self._failure: Mapping[str, Any] | None = None

    def acquire(self, done: Callable[[], bool], on_wait: Callable[[str], None]) -> bool:
        """Return True once the work is ours to do, or False when another one has done it meanwhile.

        :param done: whether the work is done; asked now and then, and may end the wait by an exception.
        :param on_wait: told once who works, if there is somebody.
        :raises FailedElsewhereError: the one that we waited for could not do it.
        """
        seen: tuple[Any, Any] | None = None
        changed = time.monotonic()
        while True:
            try:
                found = self._state.get(self._key)
                if found is None and self._state.put(self._key, self._value(), skip_if_exists=True):
                    if seen is None or not done():
                        return True
                    self._free()
                    return False
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                log.warning("%s can't be leased (%s); others may do the same work", self._key, reason)
                return True
            if found is not None and found["token"] == self._token:
                return True  # the answer to our request was lost
            if found is not None and "failure" in found:
                if seen is not None and found["token"] == seen[0]:
                    raise FailedElsewhereError(found["failure"])
                self._renew()
                return True
            if found is not None and (found["token"], found["beat"]) != seen:
                if seen is None:
                    on_wait(str(found["holder"]))
                seen, changed = (found["token"], found["beat"]), time.monotonic()
            if time.monotonic() - changed > LOST_SECONDS:
                self._renew()
                return True
            if done():
                return False
            # Not all at the same time: there may be hundreds.
            time.sleep(LOOK_SECONDS * random.uniform(0.7, 1.3))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the lease during the block, and free it afterwards; see :meth:`fail`."""

        def beat(over: threading.Event) -> None:
            while not over.wait(BEAT_SECONDS):
                self._renew()

        try:
            # Waited for without a bound: a renewal that comes later would hold what is free.
            with beside("lease-beat", beat):
                yield
        finally:
            self._free()

    def fail(self, failure: Mapping[str, Any]) -> None:
        """Have those who wait told that the work failed, instead of trying it themselves."""
        self._failure = failure

    def _value(self) -> dict[str, Any]:
        failure = {} if self._failure is None else {"failure": dict(self._failure)}
        return {"token": self._token, "holder": self._holder, "beat": self._beats, **failure}

    def _renew(self) -> None:
        self._beats += 1
        self._try(lambda: self._state.put(self._key, self._value()))

    def _free(self) -> None:
        if self._failure is not None:
            self._renew()
        else:
            self._try(lambda: self._state.pop(self._key))

    def _try(self, change: Callable[[], object]) -> None:
        try:
            change()
        except Exception as error:
            # Such as KeyError: somebody took it for lost, and was through before us.
            log.warning(
                "the lease of %s could not be changed: %s: %s", self._key, type(error).__name__, error
            )

"""Who may change the DAG tree as a whole, or remove stored DAG files?

One process at a time, wherever it runs: ``dags sync``, ``clean``, and whoever stores a new DAG version. The
lock is an entry of the environment's state Dict, made if it is absent, because the command line has no
database. It is a lease: its holder renews it, and one whose holder died is taken over.

Clocks of different hosts are compared with a wide margin. A lease is no fence: a process that was suspended
for minutes may still believe that it holds the lock, so :meth:`Lease.require` is asked before what can't be
taken back.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import names
from airflow_provider_modal.errors import ModalflowError, NotFoundError
from airflow_provider_modal.modal_errors import translated
from airflow_provider_modal.side_thread import beside

if TYPE_CHECKING:
    import modal

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""How long a lease holds without being renewed."""
RENEW_SECONDS = 15.0
CLOCK_MARGIN = 60.0
"""Seconds by which clocks of two hosts may differ."""
_POLL_SECONDS = 0.5


class TreeBusyError(ModalflowError):
    """Somebody else changes the DAG tree."""


class Lease:
    """The lock, held.

    :param token: tells this lease from every other one.
    """

    def __init__(self, state: modal.Dict, token: str, what: str, clock: Callable[[], float]) -> None:
        self._state = state
        self._clock = clock
        self.token = token
        self._what = what

    def entry(self) -> dict[str, Any]:
        """Return what the Dict holds while this lease does."""
        until = self._clock() + LEASE_SECONDS
        return {"token": self.token, "what": self._what, "host": socket.gethostname(), "until": until}

    def require(self) -> None:
        """Make sure that the lease still holds.

        :raises TreeBusyError: it was taken over, because it could not be renewed in time.
        """
        with translated("read the lock of the DAG tree"):
            found = self._state.get(names.DAG_TREE_KEY)
        if not found or found.get("token") != self.token:
            raise TreeBusyError(
                f"{self._what} lost the lock of the DAG tree, because it was held up for more than "
                f"{LEASE_SECONDS:g} s; nothing was switched, start it again"
            )

    def renew(self, ended: threading.Event) -> None:
        """Renew the lease until ``ended`` is set; for a thread of its own."""
        while not ended.wait(RENEW_SECONDS):
            try:
                self.require()
                self._state.put(names.DAG_TREE_KEY, self.entry())
            except TreeBusyError:
                return
            except Exception as error:
                log.warning("the lock of the DAG tree was not renewed: %s: %s", type(error).__name__, error)


class DagTreeLock:
    """The lock of an environment's DAG tree.

    :param state: the environment's state Dict.
    :param clock: seconds since the epoch.
    """

    def __init__(self, state: modal.Dict, *, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._clock = clock

    @classmethod
    def open(cls, resources: names.ResourceNames) -> DagTreeLock:
        """Return the lock of an environment; makes no call yet."""
        import modal

        return cls(modal.Dict.from_name(resources.state_dict))

    @contextmanager
    def hold(self, what: str, wait: float) -> Iterator[Lease]:
        """Hold the lock for the time of the block.

        :param what: what holds it, told to those who wait.
        :param wait: seconds to wait for somebody else.
        :raises TreeBusyError: somebody else still holds it.
        :raises UnreachableError: Modal does not answer.
        """
        lease = Lease(self._state, secrets.token_hex(8), what, self._clock)
        self._acquire(lease, time.monotonic() + wait)
        try:
            with beside("dag-tree-lock", lease.renew, wait=_POLL_SECONDS):
                yield lease
        finally:
            self._release(lease)

    def _acquire(self, lease: Lease, ends: float) -> None:
        from modal import exception

        try:
            self._try_until(lease, ends)
        except exception.NotFoundError as error:
            raise NotFoundError(
                f"the environment's state Dict does not exist ({error}); create it: modalflow create"
            ) from error

    def _try_until(self, lease: Lease, ends: float) -> None:
        with translated("take the lock of the DAG tree"):
            while not self._state.put(names.DAG_TREE_KEY, lease.entry(), skip_if_exists=True):
                holder = self._state.get(names.DAG_TREE_KEY)
                if holder is None:
                    continue
                if self._clock() > holder["until"] + CLOCK_MARGIN:
                    self._take_from(holder)
                    continue
                if holder["token"] == lease.token:
                    return  # the answer to our own put was lost
                if time.monotonic() >= ends:
                    raise TreeBusyError(
                        f"{holder['what']} on {holder['host']} is at work on the DAG tree; try again when it "
                        f"has ended (one that was killed counts until {LEASE_SECONDS + CLOCK_MARGIN:g} s "
                        "after its last sign of life)"
                    )
                time.sleep(_POLL_SECONDS)

    def _take_from(self, dead: dict[str, Any]) -> None:
        taken = self._state.pop(names.DAG_TREE_KEY, None)
        if taken is not None and taken["token"] != dead["token"]:
            # Somebody else was quicker and holds it now: it stays theirs.
            self._state.put(names.DAG_TREE_KEY, taken, skip_if_exists=True)

    def _release(self, lease: Lease) -> None:
        try:
            found = self._state.get(names.DAG_TREE_KEY)
            if found and found.get("token") == lease.token:
                self._state.pop(names.DAG_TREE_KEY, None)
        except Exception as error:
            log.warning(
                "the lock of the DAG tree was not released and counts for up to %g s: %s: %s",
                LEASE_SECONDS + CLOCK_MARGIN,
                type(error).__name__,
                error,
            )

"""How does a container run Airflow without importing it each time, and without forking Modal's threads?

The zygote is a process that imports everything once and then forks a child per request, in milliseconds.
It is started by fork and exec, so it has none of the threads of Modal's client, which live in the entry
process. It stays single-threaded itself, because a fork copies the locks of other threads, but not the
threads that would release them.

    zygote = Zygote.start("airflow_provider_modal.worker.af3:warm_up")
    child = zygote.spawn("some.module:function", {"argument": 1}, {"SOME_VARIABLE": "value"})
    outcome = child.wait(60)

This module is the entry process's side; ``zygote_process`` and ``zygote_child`` are the other two.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_modal import errors
from airflow_provider_modal.container import framing, processes

log = logging.getLogger(__name__)

READY_TIMEOUT = 180.0
"""Seconds for imports and warm-up; Airflow 3 takes 5 to 10 on one core."""
SPAWN_TIMEOUT = 30.0
"""Seconds for one fork; it takes milliseconds unless the machine is out of memory."""

MARK = "MODALFLOW_ZYGOTE"
"""Environment variable of the zygote and all below it: they must not start another one."""

# The zygote sees the same modules as the entry process, however Modal arranged sys.path there; "-m" and
# PYTHONPATH would change what a task's own Python processes import.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from airflow_provider_modal.container.zygote_process import main; main(int(sys.argv[1]))"
)


class ZygoteError(errors.ModalflowError):
    """The zygote could not be started, or refuses to fork."""


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    :param result: what the target returned.
    :param error: what went wrong; None if the target returned.
    :param exit_code: of the child; None if a signal ended it or nobody knows.
    :param signal: the signal that ended it.
    :param error_kind: ``errors.kind_of`` of a :class:`ModalflowError` that the target raised.
    """

    result: Any = None
    error: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    error_kind: str | None = None


class Child:
    """A forked process that runs one target; leader of a session of its own."""

    def __init__(self, own: socket.socket) -> None:
        self.pid = 0
        self._own = own
        self._reader = framing.Reader(own)
        self._answer: dict[str, Any] | None = None
        self._spawned = threading.Event()
        self._done = threading.Event()
        self._outcome: Outcome | None = None

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """Return how the child ended; None if it still runs after ``timeout`` seconds."""
        self._done.wait(timeout)
        return self._outcome

    def send_signal(self, signum: int) -> None:
        """Send a signal to the child process alone; does nothing once it has ended."""
        if not self._done.is_set():
            processes.send_signal(self.pid, signum)

    def kill(self) -> None:
        """SIGKILL the child and everything that it started, whatever process groups they have."""
        if not self._done.is_set():
            processes.kill_family(self.pid)

    def _receive(self) -> None:
        """Take what the child has sent so far; called by the thread that listens."""
        try:
            self._reader.receive()
            for frame in self._reader.frames():
                self._answer = frame
        except framing.FrameError as error:
            self._answer = {"error": f"the child's answer can't be read: {error}"}
            self._reader.ended = True

    def _exited(self, status: int) -> None:
        # The child wrote everything before it ended; whatever it left behind may hold the socket open.
        self._own.setblocking(False)
        try:
            while not self._reader.ended:
                self._receive()
        except BlockingIOError:
            pass
        code = os.waitstatus_to_exitcode(status)
        answer = self._answer or {}
        if code < 0:
            self._finish(
                Outcome(
                    error=f"it was killed by signal {-code} ({processes.signal_name(-code)})", signal=-code
                )
            )
        elif "result" in answer:
            self._finish(Outcome(result=answer["result"], exit_code=code))
        else:
            error = answer.get("error") or f"it exited with code {code} without a result"
            self._finish(Outcome(error=error, exit_code=code, error_kind=answer.get("error_kind")))

    def _finish(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._own.close()
        self._done.set()
        self._spawned.set()


class Zygote:
    """A pre-imported process that forks children; safe to use from several threads."""

    def __init__(self, warm_up: str | None) -> None:
        self._warm_up = warm_up
        self._lock = threading.Lock()
        self._running = _Process(warm_up)

    @classmethod
    def start(cls, warm_up: str | None = None) -> Zygote:
        """Start a zygote and return at once; it gets ready meanwhile.

        :param warm_up: ``"module:function"`` that runs once in it; what that imports and builds, every child
            finds done.
        """
        return cls(warm_up)

    @property
    def pid(self) -> int:
        """Process id of the zygote."""
        return self._running.pid

    def ready(self, timeout: float = READY_TIMEOUT) -> float:
        """Wait until children can be forked and return how many seconds the warm-up took.

        One that has ended is started again, so that a start which failed is told once and does not spoil
        the container for good.

        :raises ZygoteError: the warm-up failed, or is not through after ``timeout`` seconds.
        """
        return self._current().ready(timeout)

    def spawn(self, target: str, args: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Child:
        """Fork a child that calls ``target`` (``"module:function"``) with ``args``, once the zygote is ready.

        A zygote that died in the meantime is started again.

        :param args: keyword arguments; JSON-able, as is the result.
        :param env: added to the zygote's environment.
        :raises ZygoteError: no child could be made.
        """
        running = self._current()
        running.ready(READY_TIMEOUT)
        return running.spawn(target, {"target": target, "args": dict(args), "env": dict(env or {})})

    def stop(self, timeout: float = 10.0) -> None:
        """End the zygote and all its children."""
        self._running.stop(timeout)

    def _current(self) -> _Process:
        with self._lock:
            if self._running.gone.is_set() and not self._running.has_news:
                log.warning("the zygote (pid %d) has ended and is started again", self.pid)
                self._running = _Process(self._warm_up)
            return self._running


class _Process:
    """One zygote process and the thread that listens to it."""

    def __init__(self, warm_up: str | None) -> None:
        self.gone = threading.Event()
        self._settled = threading.Event()
        self._failure: str | None = None
        self._told = False
        self._seconds = 0.0
        self._ids = itertools.count(1)
        self._children: dict[int, Child] = {}
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(theirs.fileno()), json.dumps(sys.path)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, MARK: "1"},
            )
        self._selector.register(self._control, selectors.EVENT_READ)
        framing.send(self._control, {"op": "start", "warm_up": warm_up})
        threading.Thread(target=self._listen, name="zygote-listener", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_news(self) -> bool:
        """Its start failed, and nobody has been told."""
        return self._failure is not None and not self._told

    def ready(self, timeout: float) -> float:
        if not self._settled.wait(timeout):
            raise ZygoteError(
                f"the container's Airflow process is not ready after {timeout:g} s; its output says how far "
                "it came, more cpu makes it faster"
            )
        if self._failure is not None:
            self._told = True
            raise ZygoteError(f"the container's Airflow process could not start: {self._failure}")
        return self._seconds

    def spawn(self, target: str, request: dict[str, Any]) -> Child:
        ours, theirs = socket.socketpair()
        child = Child(ours)
        with theirs, self._lock:
            if self.gone.is_set():
                raise ZygoteError(f"no process for {target} could be started: the zygote has ended")
            request_id = next(self._ids)
            self._children[request_id] = child
            self._selector.register(ours, selectors.EVENT_READ, child)
            try:
                framing.send(self._control, {"op": "spawn", "id": request_id}, theirs.fileno())
            except OSError:
                pass  # the listener learns of the zygote's end as well, and ends all children
        if not child._spawned.wait(SPAWN_TIMEOUT):
            # A fork that comes late finds no request, and ends.
            ours.shutdown(socket.SHUT_RDWR)
            raise ZygoteError(f"the zygote (pid {self.pid}) did not fork within {SPAWN_TIMEOUT:g} s")
        if child.pid == 0:
            assert child._outcome is not None
            raise ZygoteError(f"no process for {target} could be started: {child._outcome.error}")
        try:
            framing.send(ours, request)
        except OSError:
            pass  # it died already; wait() tells how
        return child

    def stop(self, timeout: float) -> None:
        try:
            self._control.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already
        # While it warms up it listens to nobody, and has no children.
        if not self._settled.is_set() or not self.gone.wait(timeout):
            self._process.kill()
            self.gone.wait(timeout)

    def _listen(self) -> None:
        """Take messages of the zygote and its children; ends with the zygote."""
        reader = framing.Reader(self._control)
        while not reader.ended:
            for key, _ in self._selector.select():
                if key.fileobj is self._control:
                    reader.receive()
                    for message in reader.frames():
                        self._take(message)
                elif key.data in self._children.values():
                    key.data._receive()
                    if key.data._reader.ended:
                        self._forget(key.data)
        code = self._process.wait()
        how = f"exit code {code}" if code >= 0 else f"signal {-code} ({processes.signal_name(-code)})"
        if not self._settled.is_set():
            self._failure = f"it ended during its start with {how}; its output says why"
            self._settled.set()
        with self._lock:
            self.gone.set()
            for child in self._children.values():
                if child.pid:
                    # PDEATHSIG has ended the child itself; what that forked may have outlived it.
                    processes.kill_family(child.pid)
                child._finish(Outcome(error=f"the zygote ended ({how}) and took its children with it"))
            self._children.clear()
            self._selector.close()
            self._control.close()

    def _take(self, message: dict[str, Any]) -> None:
        op = message["op"]
        if op == "ready":
            self._seconds = message["seconds"]
            self._settled.set()
        elif op == "failed":
            self._failure = message["error"]
            self._settled.set()
        elif op == "spawned":
            child = self._children[message["id"]]
            child.pid = message["pid"]
            child._spawned.set()
        else:
            child = self._children.pop(message["id"])
            self._forget(child)
            if op == "exited":
                child._exited(message["status"])
            else:
                child._finish(Outcome(error=message["error"]))

    def _forget(self, child: Child) -> None:
        """Listen no more to a child's own socket."""
        try:
            self._selector.unregister(child._own)
        except KeyError:
            pass  # it had closed its side before it ended

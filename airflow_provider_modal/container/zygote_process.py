"""What does the zygote process do? It waits, single-threaded and with everything imported, and forks.

Started by ``zygote.Zygote`` with one end of a unix socket. On it, frames (see ``framing``):

    <- {"op": "start", "warm_up": "module:function" or null}
    -> {"op": "ready", "seconds": ...}  or  {"op": "failed", "error": ...} and the end
    <- {"op": "spawn", "id": ...} with a socket, the child's own
    -> {"op": "spawned", "id": ..., "pid": ...}  or  {"op": "refused", "id": ..., "error": ...}
    -> {"op": "exited", "id": ..., "status": wait status}

What a child runs and what comes of it goes over the child's own socket (see ``zygote_child``), so that a
large message of one child never delays another. When the entry process ends, zygote and children do.
"""

from __future__ import annotations

import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from airflow_provider_modal.container import framing, processes, zygote_child


class _EntryGone(BaseException):
    """The entry process, for which all this works, has ended; nothing that is being imported may catch it."""


def main(control_fd: int) -> None:
    """Run the zygote on an inherited socket; returns never."""
    parent = os.getppid()

    def on_parent_death(_signum: int, _frame: FrameType | None) -> None:
        # The kernel sends it when the *thread* that started us ends, too: only a new parent is a death.
        if os.getppid() != parent:
            raise _EntryGone

    signal.signal(signal.SIGTERM, on_parent_death)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for step in (lambda: processes.die_with_parent(signal.SIGTERM), processes.adopt_orphans):
        try:
            step()
        except OSError as error:
            # The closed socket tells of the entry's end as well, and orphans then go to process 1.
            print(f"zygote: {error}", file=sys.stderr)
    _Zygote(socket.socket(fileno=control_fd)).run()


def resolve(target: str) -> Callable[..., Any]:
    """Return the function that ``"module:function"`` names."""
    module, _, function = target.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


class _Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._reader = framing.Reader(control)
        self._children: dict[int, Any] = {}
        """Request id of every living child, by pid."""
        self._helpers: frozenset[int] = frozenset()
        """Processes that the warm-up started, such as a plugin's."""

    def run(self) -> None:
        try:
            self._warm_up(self._reader.read())
            self._serve()
        except (_EntryGone, EOFError, BrokenPipeError):
            pass
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for pid in list(self._children):
                processes.kill_family(pid)
        os._exit(0)

    def _warm_up(self, request: dict[str, Any]) -> None:
        started = time.monotonic()
        # Imports make hundreds of thousands of objects that stay; collecting among them finds nothing.
        gc.disable()
        try:
            if request["warm_up"]:
                resolve(request["warm_up"])()
            complaint = _threads_complaint()
            if complaint:
                raise RuntimeError(complaint)
        except Exception as error:
            traceback.print_exc()
            self._tell({"op": "failed", "error": f"{type(error).__name__}: {error}"})
            raise EOFError from error
        self._helpers = processes.children_of(os.getpid())
        # What is alive now stays: the collector of a child need not touch, and so copy, these pages.
        gc.collect()
        gc.freeze()
        gc.enable()
        self._tell({"op": "ready", "seconds": round(time.monotonic() - started, 3)})

    def _serve(self) -> None:
        wakeup, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        selector = selectors.DefaultSelector()
        selector.register(self._control, selectors.EVENT_READ)
        selector.register(wakeup, selectors.EVENT_READ)
        private = [self._control.fileno(), wakeup, wakeup_write, selector.fileno()]
        while True:
            for key, _ in selector.select():
                if key.fileobj is self._control:
                    self._reader.receive()
                    for request in self._reader.frames():
                        self._spawn(request["id"], self._reader.take_fd(), private)
                    if self._reader.ended:
                        raise _EntryGone
                else:
                    os.read(wakeup, 4096)
            self._reap()

    def _spawn(self, request_id: Any, child_fd: int, private: list[int]) -> None:
        complaint = _threads_complaint()
        if complaint:
            os.close(child_fd)
            self._tell({"op": "refused", "id": request_id, "error": complaint})
            return
        zygote = os.getpid()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # What is meant for the child must not find the zygote's handler there.
        signal.pthread_sigmask(signal.SIG_BLOCK, zygote_child.HELD_BACK)
        try:
            pid = os.fork()
            if pid == 0:
                zygote_child.run(child_fd, zygote, private)
        except OSError as error:
            os.close(child_fd)
            self._tell({"op": "refused", "id": request_id, "error": f"no process could be made: {error}"})
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, zygote_child.HELD_BACK)
        os.close(child_fd)
        self._children[pid] = request_id
        self._tell({"op": "spawned", "id": request_id, "pid": pid})

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            request_id = self._children.pop(pid, None)
            if request_id is None:  # an orphan of a child's
                continue
            # What it left behind would keep memory and files of the next one's container.
            processes.kill_family(pid)
            if not self._children:
                # A daemon in a session of its own. Whose it was can't be told once it is adopted, so what is
                # left while another child lives ends with the last one.
                for adopted in processes.children_of(os.getpid()) - self._helpers:
                    processes.kill_family(adopted)
            self._tell({"op": "exited", "id": request_id, "status": status})

    def _tell(self, message: dict[str, Any]) -> None:
        framing.send(self._control, message)


def _threads_complaint() -> str | None:
    """Return what is wrong if there is more than this thread: a lock of another one is copied locked."""
    tasks = list(Path("/proc/self/task").iterdir())
    if len(tasks) == 1:
        return None
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return (
        f"the zygote has {len(tasks)} threads and must not fork; something that is imported at start (a "
        f"plugin, a settings module) started one: {', '.join(names) or 'a native thread'}"
    )

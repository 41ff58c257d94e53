"""What happens in a forked child of the zygote?

It becomes the leader of a session, is bound to the zygote's life, reads one request from its own socket,

    <- {"target": "module:function", "args": {...}, "env": {...}}
    -> {"result": ...}  or  {"error": text, "error_kind": kind or null}

runs the target in an otherwise untouched copy of the zygote, and ends.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from typing import Any, NoReturn

from airflow_provider_modal import errors
from airflow_provider_modal.container import framing, processes

HELD_BACK = frozenset({signal.SIGTERM})
"""Signals that the zygote blocks for the fork; the child lets them in when it has its own handlers."""
EXIT_LOST = 70
"""Exit code when the zygote died before the child was bound to its life (EX_SOFTWARE of sysexits.h)."""


def run(fd: int, zygote: int, private: list[int]) -> NoReturn:
    """Run one request in a process that was just forked.

    :param fd: the child's own socket.
    :param zygote: pid of the parent.
    :param private: file descriptors of the zygote that are none of the child's business.
    """
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
        os.setsid()
        _bind_to(zygote)
        for descriptor in private:
            os.close(descriptor)
        _bind_forks_to_self()
        code = _work(socket.socket(fileno=fd))
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass  # the target closed it, or nobody reads any more
        # Not sys.exit: what the zygote registered at exit is the zygote's, and threads of the target must not
        # keep the process.
        os._exit(code)


def _work(own: socket.socket) -> int:
    request = framing.Reader(own).read()
    os.environ.update(request["env"])
    code = 0
    answer: dict[str, Any]
    try:
        # Imported here: the zygote's loop imports this module.
        from airflow_provider_modal.container.zygote_process import resolve

        answer = {"result": resolve(request["target"])(**request["args"])}
    except errors.ModalflowError as error:
        answer = {"error": str(error), "error_kind": errors.kind_of(error)}
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        answer = {"error": f"it exited with code {code} before it had a result", "error_kind": None}
    except BaseException as error:
        traceback.print_exc()
        code = 1
        answer = {"error": f"{type(error).__name__}: {error}", "error_kind": None}
    try:
        framing.send(own, answer)
    except (framing.FrameError, TypeError, ValueError) as error:
        framing.send(
            own, {"error": f"{request['target']}: its result can't travel: {error}", "error_kind": None}
        )
    return code


def _bind_to(parent: int) -> None:
    """End with the parent, also if that died before the kernel knew."""
    try:
        processes.die_with_parent()
    except OSError as error:
        print(f"zygote child: {error}", file=sys.stderr)  # the entry process kills the session all the same
    if os.getppid() != parent:
        os._exit(EXIT_LOST)


def _bind_forks_to_self() -> None:
    """Have what this process forks end with it: Airflow's supervisor forks the process that runs user code.

    Only direct forks of the main thread: the kernel's notion of a parent is the forking thread, and what a
    task forks itself is the task's.
    """
    own = os.getpid()
    by_main_thread = False

    def before() -> None:
        nonlocal by_main_thread
        by_main_thread = os.getpid() == own and threading.current_thread() is threading.main_thread()

    def in_child() -> None:
        if by_main_thread and os.getpid() != own:
            _bind_to(own)

    os.register_at_fork(before=before, after_in_child=in_child)

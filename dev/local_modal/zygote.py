"""A process that has imported what every container imports, and forks: a container without the half second
that `import modal` takes.

`python zygote.py SOCKET PARENT_PID`, run by the interpreter of the containers; standard library and `modal`
only. Over the inherited socket it gets, per container, four bytes of length with the container's stdout and
stderr as passed descriptors, then JSON: {"id", "spec", "environ"}, where `spec` is the launcher's. It answers
in lines of JSON: {"ready": n} once, {"id", "pid"} for a container that has been forked, {"id", "error"} for
one that hasn't, {"pid", "status"} for one that has ended.

A forked container must be what a new interpreter would have made. What can't be set afterwards is compared in
the container's own process, when it sees its file tree; with any difference that process executes a new
interpreter. See `differences`. One thing remains: the containers of one zygote have the same hash seed,
which is why the server renews it now and then.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    # The directory of this file has modules with common names; nothing may find them.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
from local_modal import launcher

if __name__ == "__main__":
    del sys.path[0]

LENGTH_BYTES = 4
READ_AT_START = ("PYTHON", "LD_", "LC_", "MALLOC_")
READ_AT_START_EXACTLY = ("LANG", "LANGUAGE", "GLIBC_TUNABLES", "OPENSSL_CONF", "OPENSSL_MODULES")
"""Variables that the C library, OpenSSL and the interpreter look at when they start."""
SET_AFTERWARDS = ("PYTHONPATH", "HOME")
"""Variables whose effect a fork gives itself, see `_take_over`."""
STARTUP_MODULES = ("sitecustomize", "usercustomize")
"""What an interpreter imports from its path when it starts, if it is there."""
IMPORTED_LATER = ("modal._utils.proxy_support",)
"""What the entrypoint imports only when it connects, for every container."""
START_NEW = """
import json, runpy, sys
if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]
spec = json.loads(sys.argv[1])
sys.path[:] = [entry for entry in sys.path if entry not in spec["foreign_path"]]
sys.argv = [spec["module"], *spec["argv"]]
runpy.run_module(spec["module"], run_name="__main__", alter_sys=True)
"""


class Preloaded:
    """What the zygote has imported, and what these imports depended on."""

    def __init__(self, environ: Mapping[str, str], asked: Mapping[str, str | None]) -> None:
        self.environ = dict(environ)
        """The zygote's own environment."""
        self.asked = dict(asked)
        """Variables that were looked up while importing, and what was found."""
        names = [name for name in sys.modules if not _is_own(name)]
        self.names = {name.partition(".")[0] for name in names} | set(STARTUP_MODULES)
        paths = [getattr(sys.modules[name], "__file__", None) for name in names]
        self.files = {path: _identity(path) for path in paths if path}

    def differences(self, environ: Mapping[str, str]) -> list[str]:
        """Why a container with this environment, in this process's file tree, needs a new interpreter."""
        found = [f"{name} is another" for name in self._variables(environ)]
        for entry in environ.get("PYTHONPATH", "").split(":"):
            found += [f"{name} is in {entry or 'the directory'}" for name in _shadows(entry, self.names)]
        found += [f"{path} is another file" for path, was in self.files.items() if _identity(path) != was]
        settings = os.path.join(environ.get("HOME", "/"), ".modal.toml")
        if os.path.lexists(settings):
            found.append(f"{settings} exists")
        return found

    def _variables(self, environ: Mapping[str, str]) -> list[str]:
        early = [
            name
            for name in {*environ, *self.environ}
            if name.startswith(READ_AT_START) or name in READ_AT_START_EXACTLY
        ]
        different = [name for name in early if environ.get(name) != self.environ.get(name)]
        different += [name for name, value in self.asked.items() if environ.get(name) != value]
        return [name for name in dict.fromkeys(different) if name not in SET_AFTERWARDS]


def _is_own(name: str) -> bool:
    # `multiprocessing` adds a second name for the main module.
    return name in ("__main__", "__mp_main__") or name.partition(".")[0] == "local_modal"


def _shadows(entry: str, names: Iterable[str]) -> list[str]:
    """Which of these top-level modules an entry of the path would provide, or may."""
    if not entry.startswith("/"):
        return ["something"]
    try:
        present = {name.partition(".")[0] for name in os.listdir(entry)}
    except FileNotFoundError:
        return []
    except OSError:  # a zip file, or not ours to read: leave it to an interpreter
        return ["something"]
    return sorted(present.intersection(names))


def _identity(path: str) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (status.st_dev, status.st_ino, status.st_mtime_ns)


class _Recorder(type(os.environ)):  # type: ignore[misc]
    """os.environ while modules are imported: remembers what it was asked for."""

    asked: dict[str, str | None] = {}

    def __getitem__(self, name: str) -> str:
        try:
            value: str = super().__getitem__(name)
        except KeyError:
            self.asked[name] = None
            raise
        self.asked[name] = value
        return value


def preload(module: str, later: Iterable[str] = ()) -> Preloaded:
    """Import `module` and all that it needs, and `later` if it is there, but leave `module` to be run as
    `__main__`.
    """
    plain = type(os.environ)
    os.environ.__class__ = _Recorder
    try:
        importlib.import_module(module)
        for name in later:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError:
                pass  # this version of the SDK hasn't got it
    finally:
        os.environ.__class__ = plain
    parent, _, name = module.rpartition(".")
    del sys.modules[module]
    if parent:
        delattr(sys.modules[parent], name)
    return Preloaded(os.environ, _Recorder.asked)


def serve(connection: socket.socket) -> tuple[launcher.Spec, dict[str, str]]:
    """Fork a container for every request; returns in each of them, with its spec and environment. The zygote
    itself exits when the server closes the connection.
    """
    awake, waker = os.pipe()
    for descriptor in (awake, waker):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda signum, frame: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    while True:
        readable, _, _ = select.select([connection.fileno(), awake], [], [])
        if awake in readable:
            os.read(awake, 4096)
            _reap(connection)
        if connection.fileno() not in readable:
            continue
        request, descriptors = _receive(connection)
        if request is None:
            os._exit(0)
        if len(os.listdir("/proc/self/task")) > 1:
            _send(connection, {"id": request["id"], "error": "an import has started a thread"})
            pid = -1
        else:
            try:
                pid = os.fork()
            except OSError as error:
                # No memory or no processes left, which passes; the containers there are must not end by it.
                _send(connection, {"id": request["id"], "error": f"fork: {error}"})
                pid = -1
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for target, descriptor in enumerate(descriptors, start=1):
                os.dup2(descriptor, target)
            for descriptor in (*descriptors, awake, waker):
                os.close(descriptor)
            connection.close()
            return request["spec"], request["environ"]
        for descriptor in descriptors:
            os.close(descriptor)
        if pid > 0:
            _send(connection, {"id": request["id"], "pid": pid})


def _reap(connection: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _send(connection, {"pid": pid, "status": os.waitstatus_to_exitcode(status)})


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the server is gone; containers die with their parent


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    header, descriptors, _, _ = socket.recv_fds(connection, LENGTH_BYTES, 2)
    header += _exactly(connection, LENGTH_BYTES - len(header)) if header else b""
    if len(header) < LENGTH_BYTES:
        return None, []
    length = int.from_bytes(header, "big")
    body = _exactly(connection, length)
    return (json.loads(body) if len(body) == length else None), descriptors


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


def run_forked(preloaded: Preloaded, spec: launcher.Spec) -> NoReturn:
    """Be the container's own process: in this interpreter if it is like a new one, else in a new one."""
    launcher.settle(spec)
    if spec["new_interpreter"] or preloaded.differences(os.environ):
        # Python ignores these; a program that it executes must not.
        for signum in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(signum, signal.SIG_DFL)
        arguments = json.dumps({name: spec[name] for name in ("foreign_path", "module", "argv")})
        os.execv(sys.executable, [sys.executable, "-c", START_NEW, arguments])
    _take_over()
    launcher.run_as_main(spec)


def _take_over() -> None:
    """What the interpreter and `modal` have computed from their environment at their start, done again."""
    entries = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(":") if entry]
    sys.path[:] = list(dict.fromkeys([*entries, *sys.path]))
    config = sys.modules.get("modal.config")
    if config is not None:
        config.user_config_path = os.path.expanduser("~/.modal.toml")  # type: ignore[attr-defined]
    for name in [name for name in sys.modules if name.partition(".")[0] == "local_modal"]:
        del sys.modules[name]


def main(descriptor: int, parent_pid: int, module: str, foreign_path: list[str]) -> NoReturn:
    """Preload, then fork until the connection ends."""
    launcher.die_with_parent(signal.SIGKILL, parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=descriptor)
    sys.path[:] = [entry for entry in sys.path if entry not in foreign_path]
    preloaded = preload(module, IMPORTED_LATER)
    # Otherwise the first full collection in every container, at the latest at its end, would look at all that
    # was imported, and looking copies the memory: 50 ms.
    gc.collect()
    gc.freeze()
    _send(connection, {"ready": len(preloaded.names)})
    me = os.getpid()
    spec, environ = serve(connection)
    os.setsid()
    os.environ.clear()
    os.environ.update(environ)
    # Not the parent that it has by now: if the zygote has died, nobody would ever tell the container.
    launcher.become(spec | {"parent_pid": me}, lambda described: run_forked(preloaded, described))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))

"""A server for tests: a real process on a state directory of its own, which can be stopped, killed and
started again.

    with LocalModal() as server:
        subprocess.run(["modal", "deploy", "app.py"], env=server.env, check=True)
        with server.fault("lose", rpc="FunctionMap", count=1) as fault:
            ...
        assert fault.struck == 1
        server.kill_container("work")
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from local_modal.access import read_token
from local_modal.clients import Control, ControlError, client_environ

__all__ = ["ControlError", "FaultHandle", "LocalModal", "wait_until"]

READY_SECONDS = 60.0
STOP_SECONDS = 60.0
LOOKS = ("tasks", "status", "faults")
"""What of the control API only looks, unless it is given something."""

T = TypeVar("T")


class LocalModal:
    """`python -m local_modal serve` as a sub-process, and all that a client needs to use it.

    Args:
        state_dir: kept afterwards; by default a temporary directory that is removed.
        arguments: further arguments of `serve`.
        env: variables added to the server's environment, such as `LOCAL_MODAL_NO_NAMESPACES`.
        own_session: whether Ctrl-C in the terminal spares it.
    """

    def __init__(
        self,
        state_dir: Path | None = None,
        *,
        arguments: Sequence[str] = (),
        env: dict[str, str] | None = None,
        own_session: bool = False,
    ) -> None:
        self._own_dir = state_dir is None
        self.state_dir = state_dir or Path(tempfile.mkdtemp(prefix="local-modal-"))
        self._arguments = list(arguments)
        self._extra_env = env or {}
        self._own_session = own_session
        self._process: subprocess.Popen[str] | None = None
        self._port = 0
        self.server_url = ""
        self.http_url = ""
        self.mode = ""
        self.ca_file = ""
        self.seed = 0
        """From which all chance of its faults derives; `arguments=["--seed", "7"]` chooses it."""
        self.limits: dict[str, str] = {}
        self.log_path = self.state_dir / "server.log"

    def __enter__(self) -> LocalModal:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._own_dir:
            shutil.rmtree(self.state_dir, ignore_errors=True)

    @property
    def env(self) -> dict[str, str]:
        """The environment for client processes: this process's, with every Modal setting pointing at the
        server.
        """
        own = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
        return own | client_environ(self.server_url, self.token)

    @property
    def token(self) -> str:
        """The MODAL_TOKEN_SECRET of its clients; known once it has been started."""
        return read_token(self.state_dir)

    @property
    def is_running(self) -> bool:
        """Whether it has been started, and neither stopped nor killed since."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise RuntimeError("the server isn't running")
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has logged."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def start(self) -> None:
        """Start the server and wait until it is ready; after the first time on the same port.

        Raises:
            RuntimeError: it ended or wasn't ready in time; with what it logged.
        """
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        package_parent = str(Path(__file__).parent.parent)
        path = os.environ.get("PYTHONPATH")
        env = os.environ | self._extra_env
        env["PYTHONPATH"] = package_parent + (f"{os.pathsep}{path}" if path else "")
        with self.log_path.open("a") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "local_modal", "serve"),
                    *("--state-dir", str(self.state_dir), "--port", str(self._port)),
                    *self._arguments,
                ],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=self._own_session,
            )
        ready = json.loads(self._first_line())
        self.server_url, self.http_url = ready["server_url"], ready["http_url"]
        self.mode, self.limits = ready["mode"], ready["limits"]
        self.seed = ready["seed"]
        self.ca_file = ready["ca_file"] or ""
        self._port = int(self.server_url.rpartition(":")[2])

    def _first_line(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(READY_SECONDS) else ""
        if not line:
            self._process.kill()
            self._process.wait()
            raise RuntimeError(f"local_modal didn't start on {self.state_dir}:\n{self.log}")
        return line

    def stop(self) -> None:
        """End the server and its containers cleanly."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9`: what isn't on disk is lost, containers die with the server."""
        self._end(signal.SIGKILL)

    def _end(self, signum: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(signum)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise RuntimeError(f"the server didn't stop within {STOP_SECONDS} s:\n{self.log}") from None
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def restart(self) -> None:
        """Stop (unless it is stopped or was killed) and start again, on the same port and state."""
        self.stop()
        self.start()

    def control(self, path: str, **fields: Any) -> Any:
        """Use the control API: `control("tasks")`, `control("status")` and `control("faults")` look; `kill`,
        `preempt`, `redeliver`, `fire`, `expire`, `pause`, `advance` do something, with keyword arguments.

        Raises:
            ControlError: it refused.
        """
        api = Control(self.http_url, self.token)
        return api.get(path) if path in LOOKS and not fields else api.post(path, fields)

    @contextmanager
    def fault(self, fault: str, **settings: Any) -> Iterator[FaultHandle]:
        """A fault for as long as the block takes: `with server.fault("fail", rpc="QueuePut", count=1)`. The
        kinds and their settings are those of `python -m local_modal fault --help`.

        Raises:
            ControlError: there is no such fault.
        """
        handle = self.set_fault(fault, **settings)
        try:
            yield handle
        finally:
            handle.clear()

    def set_fault(self, fault: str, **settings: Any) -> FaultHandle:
        """The same, until it is cleared, spent or over.

        Raises:
            ControlError: there is no such fault.
        """
        return FaultHandle(self, self.control("faults", fault=fault, **settings)["id"])

    def faults(self) -> list[dict[str, Any]]:
        """All faults since the start, with how often each has struck."""
        found: list[dict[str, Any]] = self.control("faults")["faults"]
        return found

    def clear_faults(self) -> None:
        """End all faults."""
        self.control("clear")

    def kill_container(self, function_name: str | None = None, **chosen: Any) -> list[str]:
        """SIGKILL to the containers of a function (or `task_id=`, `app_name=`, `count=`, `signal=`); returns
        their task ids.

        Raises:
            ControlError: there is none.
        """
        killed: list[str] = self.control("kill", **_named(function_name), **chosen)["killed"]
        return killed

    def preempt(self, function_name: str | None = None, **chosen: Any) -> list[str]:
        """Take containers away as Modal does when it needs their machine: SIGINT, a grace period, and their
        inputs start again elsewhere; returns their task ids.

        Raises:
            ControlError: there is none.
        """
        return list(self.control("preempt", **_named(function_name), **chosen)["preempted"])

    def wait_for_container(
        self, function_name: str, state: str = "busy", seconds: float = 30.0
    ) -> dict[str, Any]:
        """The first container of a function that is "starting", "idle", "busy" or "retiring"; as
        `control("status")` shows it.

        Raises:
            TimeoutError: there is none within `seconds`.
        """

        def found() -> list[dict[str, Any]]:
            return [
                container
                for container in self.control("status")["containers"]
                if container["function_name"] == function_name and container["state"] == state
            ]

        return wait_until(found, seconds, f"a container of {function_name} that is {state}")[0]

    def advance(self, seconds: float) -> None:
        """Put the server's clock forward, instead of waiting for a schedule, an expiry or a scaledown.

        Schedules that become due meanwhile fire once. Inputs that run in this moment may time out.
        """
        self.control("advance", seconds=seconds)

    def tasks(self, function_name: str | None = None) -> list[dict[str, Any]]:
        """The live containers, of one function or all."""
        tasks: list[dict[str, Any]] = self.control("tasks")["tasks"]
        return [task for task in tasks if function_name in (None, task["function_name"])]


class FaultHandle:
    """A fault that has been set on a server."""

    def __init__(self, server: LocalModal, fault_id: str) -> None:
        self._server = server
        self.id = fault_id

    @property
    def struck(self) -> int:
        """How many requests it has struck so far."""
        return int(self._now()["struck"])

    @property
    def state(self) -> str:
        """ "active", "spent", "expired" or "cleared"."""
        return str(self._now()["state"])

    def clear(self) -> None:
        """End it; whatever it stalls is let go. Does nothing if the server has stopped or started again."""
        if self._server.is_running and any(fault["id"] == self.id for fault in self._server.faults()):
            self._server.control("clear", id=self.id)

    def _now(self) -> dict[str, Any]:
        return next(fault for fault in self._server.faults() if fault["id"] == self.id)


def _named(function_name: str | None) -> dict[str, str]:
    return {} if function_name is None else {"function_name": function_name}


def wait_until(condition: Callable[[], T], seconds: float = 30.0, what: str = "") -> T:
    """Ask until the answer is truthy and return it.

    Raises:
        TimeoutError: it wasn't, within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{what or getattr(condition, '__doc__', None) or condition}: not within {seconds} s"
            )
        time.sleep(0.02)
    return answer

"""A server for tests: a real process on a state directory of its own, which can be stopped, killed and
started again.

    with LocalModal() as server:
        subprocess.run(["modal", "deploy", "app.py"], env=server.env, check=True)
        server.control("kill", function_name="work")
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
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from local_modal.access import read_token
from local_modal.clients import client_environ

READY_SECONDS = 30.0
STOP_SECONDS = 30.0

T = TypeVar("T")


class ControlError(Exception):
    """The control API refused; the message is its sentence."""


class LocalModal:
    """`python -m local_modal serve` as a sub-process, and all that a client needs to use it.

    Args:
        state_dir: kept afterwards; by default a temporary directory that is removed.
        arguments: further arguments of `serve`.
        env: variables added to the server's environment, such as `LOCAL_MODAL_NO_NAMESPACES`.
    """

    def __init__(
        self,
        state_dir: Path | None = None,
        *,
        arguments: Sequence[str] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self._own_dir = state_dir is None
        self.state_dir = state_dir or Path(tempfile.mkdtemp(prefix="local-modal-"))
        self._arguments = list(arguments)
        self._extra_env = env or {}
        self._process: subprocess.Popen[str] | None = None
        self._port = 0
        self.server_url = ""
        self.http_url = ""
        self.mode = ""
        self.ca_file = ""
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
        self.state_dir.mkdir(parents=True, exist_ok=True)
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
            )
        ready = json.loads(self._first_line())
        self.server_url, self.http_url = ready["server_url"], ready["http_url"]
        self.mode, self.limits = ready["mode"], ready["limits"]
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
        """Use the control API: `control("tasks")` lists containers; `kill`, `redeliver`, `fire` take keyword
        arguments.

        Raises:
            ControlError: it refused.
        """
        data = None if path == "tasks" else json.dumps(fields).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(f"{self.http_url}/control/{path}", data, headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise ControlError(json.load(error)["error"]) from None

    def advance(self, seconds: float) -> None:
        """Put the server's clock forward, instead of waiting for a schedule, an expiry or a scaledown.

        Schedules that become due meanwhile fire once. Inputs that run in this moment may time out.
        """
        self.control("advance", seconds=seconds)

    def tasks(self, function_name: str | None = None) -> list[dict[str, Any]]:
        """The live containers, of one function or all."""
        tasks: list[dict[str, Any]] = self.control("tasks")["tasks"]
        return [task for task in tasks if function_name in (None, task["function_name"])]


def wait_until(condition: Callable[[], T], seconds: float = 20.0, what: str = "") -> T:
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

"""A server per isolation mode, with the test apps deployed once; clients run in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local_modal.testing import LocalModal

APPS = Path(__file__).parent / "apps"
CLIENT_SECONDS = 200
MODES = os.environ.get("LOCAL_MODAL_TEST_MODES", "isolated shared").split()
"""The isolation modes that the `server` fixture goes through."""
LEAK = {"LEAKED": "from the server's own environment"}
QUICK = [
    *("--cancel-grace", "0.5", "--stop-grace", "1", "--preemption-grace", "2"),
    # The SDK acts on the first cancel event alone, and loses it if the input's code is about to start.
    *("--cancel-limit", "6"),
    # Tests decide themselves when a volume is committed.
    *("--background-commits", "0"),
]


def deploy(server: LocalModal, app: str, **environ: str) -> str:
    """`modal deploy` of one of the test apps; returns its output."""
    return modal(server, "deploy", str(APPS / f"{app}.py"), **environ)


def modal(server: LocalModal, *arguments: str, **environ: str) -> str:
    """The stock command line; returns what it prints and fails the test if it fails."""
    code, output, errors = modal_command(server, *arguments, **environ)
    assert code == 0, f"modal {arguments} failed:\n{output}{errors}\n{server.log}"
    return output


def modal_command(server: LocalModal, *arguments: str, **environ: str) -> tuple[int, str, str]:
    """What `python -m modal` does, in the server's client process, with `environ` added for its time; returns
    the exit code, stdout and stderr.
    """
    code, output, errors = client(
        server, "result = command(arguments, environ)", arguments=arguments, environ=environ
    )
    return code, output, errors


def start_client(server: LocalModal, code: str, **values: Any) -> subprocess.Popen[str]:
    """A client process that runs beside the test: `modal` is imported, `values` are variables, `result` is
    printed.
    """
    program = f"{PRELUDE}globals().update(json.loads(sys.argv[1]))\n{code}\nprint(json.dumps(result))\n"
    return subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(values)],
        env=server.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(process: subprocess.Popen[str]) -> None:
    """End a `modal serve` by Ctrl-C.

    The SDK loses an interrupt in the moment when its watch begins, so another one follows after a while.
    """
    for _ in range(6):
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=15)
            return
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    pytest.fail(f"it goes on after Ctrl-C: {process.communicate()[0]}")


def client(server: LocalModal, code: str, **values: Any) -> Any:
    """Run code in the server's client process, in a namespace of its own, and return its `result`."""
    # By the token: the next server may get the port of one that has gone.
    if server.token not in _clients:
        for token in [token for token, process in _clients.items() if process.is_idle]:
            _clients.pop(token).end()
        _clients[server.token] = _ClientProcess(server)
    return _clients[server.token].run(server, code, values)


PRELUDE = """
import json, os, sys, time, traceback, modal
f = lambda name, app='basics': modal.Function.from_name(app, name)
"""
LOOP = """
import contextlib, io
from modal.__main__ import main

def command(arguments, environ):
    before = dict(os.environ)
    os.environ.update(environ)
    sys.argv = ["modal", *arguments]
    code = 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            os.environ.clear()
            os.environ.update(before)
    return code, out.getvalue(), err.getvalue()

for line in sys.stdin:
    order = json.loads(line)
    space = dict(globals(), **order["values"])
    try:
        exec(order["code"], space)
        answer = {"result": space["result"]}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    print("ANSWER " + json.dumps(answer), flush=True)
"""


class _ClientProcess:
    """A Python process that imports `modal` once and serves many tests: the import takes longer than most of
    them.
    """

    def __init__(self, server: LocalModal) -> None:
        self._server = server
        self._process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + LOOP],
            env=server.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, server: LocalModal, code: str, values: dict[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        guard = threading.Timer(CLIENT_SECONDS, self._process.kill)
        guard.start()
        try:
            self._process.stdin.write(json.dumps({"code": code, "values": values}) + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                if line.startswith("ANSWER "):
                    answer = json.loads(line.removeprefix("ANSWER "))
                    assert "error" not in answer, f"{answer['error']}\n{server.log}"
                    return answer["result"]
        finally:
            guard.cancel()
        del _clients[server.token]
        pytest.fail(f"the client process ended or took longer than {CLIENT_SECONDS} s\n{server.log}")

    @property
    def is_idle(self) -> bool:
        """Whether its server doesn't run, so that its test is over."""
        return not self._server.is_running

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


_clients: dict[str, _ClientProcess] = {}


@pytest.fixture(scope="session", autouse=True)
def _end_clients() -> Iterator[None]:
    yield
    while _clients:
        _clients.popitem()[1].end()


@pytest.fixture(scope="session")
def isolated_server() -> Iterator[LocalModal]:
    """A server with what the kernel allows; `basics` is deployed."""
    with LocalModal(arguments=QUICK, env=LEAK) as server:
        deploy(server, "basics")
        yield server


@pytest.fixture(scope="session")
def shared_server() -> Iterator[LocalModal]:
    """A server that must do without namespaces; `basics` is deployed."""
    with LocalModal(arguments=QUICK, env=LEAK | {"LOCAL_MODAL_NO_NAMESPACES": "1"}) as server:
        assert server.mode == "shared"
        deploy(server, "basics")
        yield server


@pytest.fixture(params=MODES)
def server(request: pytest.FixtureRequest) -> LocalModal:
    """Both kinds of server, one after the other (`MODES`)."""
    found: LocalModal = request.getfixturevalue(f"{request.param}_server")
    if request.param == "isolated" and found.mode != "isolated":
        if os.environ.get("CI"):
            pytest.fail("namespaces are needed in CI")
        pytest.skip("namespaces are not available here")
    return found

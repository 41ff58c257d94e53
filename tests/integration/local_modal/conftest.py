"""A server per isolation mode, with the test apps deployed once; clients run in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local_modal.testing import LocalModal

APPS = Path(__file__).parent / "apps"
CLIENT_SECONDS = 120

Client = Callable[..., Any]


def deploy(server: LocalModal, app: str, **environ: str) -> str:
    """`modal deploy` of one of the test apps; returns its output."""
    return modal(server, "deploy", str(APPS / f"{app}.py"), **environ)


def modal(server: LocalModal, *arguments: str, **environ: str) -> str:
    """The stock command line; fails the test if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "modal", *arguments],
        env=server.env | environ,
        capture_output=True,
        text=True,
        timeout=CLIENT_SECONDS,
    )
    assert done.returncode == 0, f"modal {arguments} failed:\n{done.stdout}{done.stderr}\n{server.log}"
    return done.stdout


def start_client(server: LocalModal, code: str, **values: Any) -> subprocess.Popen[str]:
    """A Python process with `modal` imported and `values` as variables; what it assigns to `result` is its
    answer.
    """
    program = (
        "import json, os, sys, time, modal\n"
        "globals().update(json.loads(sys.argv[1]))\n"
        "f = lambda name, app='basics': modal.Function.from_name(app, name)\n"
        f"{code}\n"
        "print('RESULT ' + json.dumps(result))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(values)],
        env=server.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def client(server: LocalModal, code: str, **values: Any) -> Any:
    """Run a client to its end and return its `result`."""
    process = start_client(server, code, **values)
    try:
        output, errors = process.communicate(timeout=CLIENT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        pytest.fail(f"client timed out:\n{output}{errors}\n{server.log}")
    assert process.returncode == 0, f"client failed:\n{output}{errors}\n{server.log}"
    return json.loads(output.rpartition("RESULT ")[2])


@pytest.fixture(scope="session")
def isolated_server() -> Iterator[LocalModal]:
    """A server with what the kernel allows; `basics` is deployed."""
    with LocalModal(arguments=["--stop-grace", "2"]) as server:
        deploy(server, "basics")
        yield server


@pytest.fixture(scope="session")
def shared_server() -> Iterator[LocalModal]:
    """A server that must do without namespaces; `basics` is deployed."""
    with LocalModal(arguments=["--stop-grace", "2"], env={"LOCAL_MODAL_NO_NAMESPACES": "1"}) as server:
        assert server.mode == "shared"
        deploy(server, "basics")
        yield server


@pytest.fixture(params=["isolated", "shared"])
def server(request: pytest.FixtureRequest) -> LocalModal:
    """Both kinds of server, one after the other."""
    found: LocalModal = request.getfixturevalue(f"{request.param}_server")
    if request.param == "isolated" and found.mode != "isolated":
        if os.environ.get("CI"):
            pytest.fail("namespaces are needed in CI")
        pytest.skip("namespaces are not available here")
    return found

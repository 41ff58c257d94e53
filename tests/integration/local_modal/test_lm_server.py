"""The server as a process: its command line, its state over restarts, what it says when it can't start."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2 as api
from modal_proto.api_grpc import ModalClientStub

from local_modal.testing import ControlError, LocalModal, wait_until
from tests.integration.local_modal.command_line import local_modal
from tests.integration.local_modal.conftest import client, deploy, modal
from tests.support.processes import is_running

pytestmark = pytest.mark.one_sdk


@pytest.mark.parametrize("end", [LocalModal.stop, LocalModal.kill])
def test_deployed_apps_and_objects_survive_a_restart(
    fresh_local_modal: LocalModal, end: Callable[[LocalModal], None]
) -> None:
    server = fresh_local_modal
    modal(server, "environment", "create", "staging")
    deploy(server, "basics")
    deploy(server, "basics", MODAL_ENVIRONMENT="staging")
    put = (
        "modal.Dict.from_name('kept', create_if_missing=True)['k'] = 'v'\n"
        "modal.Queue.from_name('kept', create_if_missing=True).put(1)\n"
        "with modal.Volume.from_name('basics-volume').batch_upload() as batch:\n"
        "    batch.put_file(__import__('io').BytesIO(b'data'), '/file')\n"
        "result = f('square').remote(2)"
    )
    assert client(server, put) == 4
    url = server.server_url
    end(server)
    server.start()
    assert server.server_url == url
    get = (
        "result = [modal.Dict.from_name('kept')['k'], modal.Queue.from_name('kept').get(),\n"
        "    b''.join(modal.Volume.from_name('basics-volume').read_file('file')).decode(),\n"
        "    f('square').remote(3)]\n"
        "staged = modal.Function.from_name('basics', 'square', environment_name='staging')\n"
        "result.append(staged.remote(4))"
    )
    assert client(server, get) == ["v", 1, "data", 9, 16]


def test_schedules_survive_a_restart(fresh_local_modal: LocalModal) -> None:
    deploy(fresh_local_modal, "scheduled")
    fresh_local_modal.kill()
    fresh_local_modal.start()
    code = "q = modal.Queue.from_name('ticks', create_if_missing=True); q.clear(); result = q.get(timeout=20)"
    assert client(fresh_local_modal, code)


@pytest.mark.parametrize("environ", [{}, {"LOCAL_MODAL_NO_NAMESPACES": "1"}])
def test_a_relative_state_dir_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with LocalModal(Path("state"), env=environ) as server:
        deploy(server, "basics")
        assert client(server, "result = f('square').remote(3)") == 9


async def create_blob(server: LocalModal, metadata: dict[str, str]) -> api.BlobCreateResponse:
    host, _, port = server.server_url.removeprefix("http://").partition(":")
    async with Channel(host, int(port)) as channel:
        return await ModalClientStub(channel).BlobCreate(api.BlobCreateRequest(), metadata=metadata)


def test_an_empty_blob_can_be_uploaded(isolated_server: LocalModal) -> None:
    """A reader of the body in chunks would never see the end of an empty one."""
    token = {"x-modal-token-secret": isolated_server.token}
    [url] = asyncio.run(create_blob(isolated_server, token)).upload_urls.items
    with urllib.request.urlopen(urllib.request.Request(url, b"", method="PUT"), timeout=30) as reply:
        assert reply.headers["ETag"] == hashlib.md5(b"").hexdigest()
    with urllib.request.urlopen(url, timeout=30) as reply:
        assert reply.read() == b""


def test_a_stopped_server_leaves_no_container(fresh_local_modal: LocalModal) -> None:
    server = fresh_local_modal
    deploy(server, "basics")
    client(server, "f('square').remote(1)\nresult = f('sleepy').spawn(50).object_id")
    wait_until(lambda: server.tasks("sleepy"))
    pids = [task["pid"] for task in server.tasks()]
    assert len(pids) == 2
    server.stop()
    assert not [pid for pid in pids if pid and is_running(pid)]
    assert not list((server.state_dir / "tasks").iterdir())


def test_a_second_server_on_the_same_state_is_refused(isolated_server: LocalModal) -> None:
    done = local_modal("serve", "--state-dir", str(isolated_server.state_dir))
    assert done.returncode == 1 and done.stdout == ""
    assert "is in use by another local Modal server" in done.stderr and "Traceback" not in done.stderr


def test_a_taken_port_is_said(isolated_server: LocalModal, tmp_path: Path) -> None:
    port = isolated_server.server_url.rpartition(":")[2]
    done = local_modal("serve", "--state-dir", str(tmp_path), "--port", port)
    assert done.returncode == 1 and f":{port}" in done.stderr and "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interpreter_that_does_not_work_is_said(tmp_path: Path) -> None:
    done = local_modal("serve", "--state-dir", str(tmp_path), "--python", "/nonexistent/python")
    assert done.returncode == 1 and "/nonexistent/python" in done.stderr and "Traceback" not in done.stderr


def test_env_prints_what_a_shell_needs(isolated_server: LocalModal) -> None:
    done = local_modal("env", "--state-dir", str(isolated_server.state_dir))
    assert f"export MODAL_SERVER_URL={isolated_server.server_url}" in done.stdout.splitlines()
    assert isolated_server.ca_file in done.stdout.splitlines()[-1]
    assert json.loads((isolated_server.state_dir / "server.json").read_text())["pid"] == isolated_server.pid


def test_env_without_a_server_says_how_to_start_one(tmp_path: Path) -> None:
    done = local_modal("env", "--state-dir", str(tmp_path))
    assert done.returncode == 1 and "serve --state-dir" in done.stderr


def test_faults_refuse_what_is_not_there(isolated_server: LocalModal) -> None:
    with pytest.raises(ControlError, match="no live container matches"):
        isolated_server.control("kill", task_id="ta-nope")
    with pytest.raises(ControlError, match="NOPE"):
        isolated_server.control("kill", function_name="square", signal="NOPE")
    with pytest.raises(ControlError, match="not running"):
        isolated_server.control("redeliver", input_id="in-nope")
    done = local_modal("fault", "kill", "--state-dir", str(isolated_server.state_dir), "--task-id", "ta-nope")
    assert done.returncode == 1 and "no live container" in done.stderr


def test_an_rpc_that_is_not_there_is_named(isolated_server: LocalModal) -> None:
    code = (
        "import modal\n"
        "try:\n    modal.Sandbox.create(app=modal.App.lookup('sandboxes', create_if_missing=True))\n"
        "except Exception as error:\n    result = [type(error).__name__, str(error)]"
    )
    name, message = client(isolated_server, code)
    assert "is not implemented by the local Modal server" in message, name
    assert "is not implemented by the local Modal server" in isolated_server.log


def test_the_server_listens_on_loopback_only(isolated_server: LocalModal) -> None:
    port = int(isolated_server.server_url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30):
        pass
    hosts = {line.split()[1].split(":")[0] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
             if line.split()[1].endswith(f":{port:04X}")}  # fmt: skip
    assert hosts and "00000000" not in hosts


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"x-modal-token-secret": "as-another"},
        {"x-local-task-id": "ta-made-up"},
        {"x-local-task-id": "ta-made-up", "x-local-container-secret": "made up too"},
    ],
)
def test_strangers_are_turned_away(isolated_server: LocalModal, metadata: dict[str, str]) -> None:
    with pytest.raises(GRPCError) as refused:
        asyncio.run(create_blob(isolated_server, metadata))
    assert refused.value.status is Status.UNAUTHENTICATED


def test_a_container_is_only_believed_with_its_own_secret(isolated_server: LocalModal) -> None:
    """What user code sees of its own container doesn't make it another one."""
    headers = client(isolated_server, "result = f('describe').remote()['environ']['MODAL_OVERRIDE_HEADERS']")
    own = dict(header.split(":") for header in headers.split(","))
    assert asyncio.run(create_blob(isolated_server, own)).blob_ids
    with pytest.raises(GRPCError, match="not the container"):
        asyncio.run(create_blob(isolated_server, own | {"x-local-task-id": "ta-another"}))
    isolated_server.control("kill", task_id=own["x-local-task-id"])
    wait_until(lambda: not isolated_server.tasks("describe"))
    with pytest.raises(GRPCError, match="not the container"):
        asyncio.run(create_blob(isolated_server, own))


def test_another_token_is_told_where_the_right_one_is(isolated_server: LocalModal) -> None:
    code = (
        "try:\n    modal.Client.from_credentials('ak-x', 'as-another').hello()\n"
        "except modal.exception.AuthError as error:\n    result = str(error)"
    )
    assert "python -m local_modal env" in client(isolated_server, code)


def test_the_token_is_for_its_owner_only_and_stays(fresh_local_modal: LocalModal) -> None:
    server, token = fresh_local_modal, fresh_local_modal.token
    assert (server.state_dir / "token").stat().st_mode & 0o777 == 0o600
    command_line = Path(f"/proc/{server.pid}/cmdline").read_text()
    assert token not in command_line + server.log + (server.state_dir / "server.json").read_text()
    server.restart()
    assert server.token == token and server.control("tasks") == {"tasks": []}


@pytest.mark.parametrize("authorization", ["", "Bearer as-another", "Basic x"])
def test_the_control_api_wants_the_token(isolated_server: LocalModal, authorization: str) -> None:
    request = urllib.request.Request(
        f"{isolated_server.http_url}/control/tasks", headers={"Authorization": authorization}
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=30)


def test_a_client_may_greet_the_server(local_modal: LocalModal) -> None:
    assert client(local_modal, "modal.Client.from_env().hello(); result = 'answered'") == "answered"


def test_calls_survive_a_killed_server(fresh_local_modal: LocalModal) -> None:
    """Results stay, running and waiting inputs of deployed apps run again."""
    server = fresh_local_modal
    deploy(server, "limited", VERSION="one")
    code = (
        "version = f('version', 'limited')\n"
        "done = version.spawn(); done.get()\n"
        "result = [call.object_id for call in (done, version.spawn('restarted'), version.spawn())]"
    )
    calls = client(server, code)
    wait_until(lambda: [task for task in server.tasks() if task["running_inputs"]])
    server.kill()
    server.start()
    code = (
        "modal.Dict.from_name('limited-notes')['restarted'] = True\n"
        "result = [modal.FunctionCall.from_id(call).get(timeout=60) for call in calls]"
    )
    assert client(server, code, calls=calls) == ["one"] * 3

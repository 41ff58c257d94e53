"""The stock command line against a local server, a story per group of commands."""

from __future__ import annotations

import json
from typing import Any

import modal as sdk_package
import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import client, deploy, modal, modal_command
from tests.integration.local_modal.sdk import unique

NEWER = not sdk_package.__version__.startswith("1.5.")
"""Whether `modal function` exists."""


def listed(server: LocalModal, *command: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(modal(server, *command, "--json"))
    return found


def refused(server: LocalModal, *command: str) -> str:
    code, output, errors = modal_command(server, *command)
    assert code != 0, output
    return output + errors


def test_dicts_and_queues(local_modal: LocalModal) -> None:
    name = unique("cli")
    for kind in ("dict", "queue"):
        modal(local_modal, kind, "create", name)
        assert name in [row["name"] for row in listed(local_modal, kind, "list")]
    fill = (
        "modal.Dict.from_name(name).update({'key': 'value', 'other': 2})\n"
        "result = modal.Queue.from_name(name).put_many(['first', 'second', 'third'])"
    )
    client(local_modal, fill, name=name)
    assert modal(local_modal, "dict", "get", name, "key").strip() == "value"
    assert len(listed(local_modal, "dict", "items", name)) == 2
    assert "first" in modal(local_modal, "queue", "peek", name)
    assert modal(local_modal, "queue", "len", name).strip() == "3"
    for kind in ("dict", "queue"):
        modal(local_modal, kind, "clear", name, "--yes")
    assert modal(local_modal, "queue", "len", name, "--total").strip() == "0"
    assert client(local_modal, "result = modal.Dict.from_name(name).len()", name=name) == 0
    for kind in ("dict", "queue"):
        modal(local_modal, kind, "delete", name, "--yes")
        assert "not found" in refused(local_modal, kind, "clear", name, "--yes")


def test_secrets(local_modal: LocalModal) -> None:
    name = unique("cli")
    modal(local_modal, "secret", "create", name, "A=1", "B=2")
    assert "already exists" in refused(local_modal, "secret", "create", name, "A=3")
    modal(local_modal, "secret", "create", name, "C=3", "--force")
    assert name in [row["name"] for row in listed(local_modal, "secret", "list")]
    with pytest.raises(AssertionError, match="has no key"):
        client(
            local_modal,
            "result = modal.Secret.from_name(name, required_keys=['A']).hydrate().object_id",
            name=name,
        )
    modal(local_modal, "secret", "delete", name, "--yes")
    assert name not in [row["name"] for row in listed(local_modal, "secret", "list")]


def test_environments_are_renamed_and_deleted_with_all_that_is_in_them(
    fresh_local_modal: LocalModal,
) -> None:
    server = fresh_local_modal
    modal(server, "environment", "create", "before")
    assert "already exists" in refused(server, "environment", "create", "before")
    deploy(server, "basics", MODAL_ENVIRONMENT="before")
    modal(server, "dict", "create", "d", "--env", "before")
    modal(server, "secret", "create", "s", "A=1", "--env", "before")
    find = "result = modal.Function.from_name('basics', 'square', environment_name=environment).remote(3)"
    assert client(server, find, environment="before") == 9
    modal(server, "environment", "update", "before", "--set-name", "after", "--set-web-suffix", "suffix")
    assert {"name": "after", "web_suffix": "suffix"}.items() <= listed(server, "environment", "list")[
        1
    ].items()
    server.kill()
    server.start()
    assert client(server, find, environment="after") == 9
    assert [row["name"] for row in listed(server, "dict", "list", "--env", "after")] == ["d"]
    assert "'before' not found" in refused(server, "dict", "list", "--env", "before")
    assert server.tasks("square")
    modal(server, "environment", "delete", "after", "--yes")
    assert not server.tasks()
    assert "'after' not found" in refused(server, "app", "list", "--env", "after")
    modal(server, "environment", "create", "after")
    for kind in ("dict", "secret", "app"):
        assert listed(server, kind, "list", "--env", "after") == []
    assert "can't be deleted" in refused(server, "environment", "delete", "main", "--yes")


def test_who_am_i(local_modal: LocalModal) -> None:
    assert "Workspace: local" in modal(local_modal, "token", "info")
    modal(local_modal, "profile", "list")
    assert modal(local_modal, "profile", "current").strip() == "default"


def test_apps_containers_and_their_logs(isolated_server: LocalModal) -> None:
    client(isolated_server, "result = f('talk').remote(2, 5)")
    assert [entry["version"] for entry in listed(isolated_server, "app", "history", "basics")]
    [task] = isolated_server.tasks("talk")[:1]
    assert task["task_id"] in modal(isolated_server, "container", "list", "--json")
    assert "000001xxxxx" in modal(isolated_server, "container", "logs", task["task_id"])
    modal(isolated_server, "container", "stop", task["task_id"], "--yes")
    wait_until(lambda: task["task_id"] not in [t["task_id"] for t in isolated_server.tasks()])
    assert "000001xxxxx" in modal(isolated_server, "container", "logs", task["task_id"])


@pytest.mark.skipif(not NEWER, reason="modal 1.5 has no `modal function`")
def test_functions(isolated_server: LocalModal) -> None:
    client(
        isolated_server, "result = [f('square').remote(4), f('talk').with_options(timeout=50).remote(1, 1)]"
    )
    assert "square" in modal(isolated_server, "function", "info", "basics/square")
    # Its range ends now, by a clock of whole seconds: a call of this second may not be in it yet.
    calls = wait_until(
        lambda: listed(isolated_server, "function", "calls", "basics/square", "--since", "1h"),
        30,
        "it is listed",
    )
    assert calls[-1]["function_call_id"].startswith("fc-") and calls[-1]["container_id"]
    assert len(listed(isolated_server, "function", "calls", "basics/talk", "--all-variants")) >= 1
    assert "000000x" in modal(isolated_server, "function", "logs", "basics/talk")
    assert len(listed(isolated_server, "function", "variants", "basics/talk")) >= 1
    modal(isolated_server, "function", "autoscaler", "update", "basics/square", "--buffer-containers", "0")
    settings = json.loads(
        modal(isolated_server, "function", "autoscaler", "settings", "basics/square", "--json")
    )
    assert settings["current_settings"]["max_containers"] == 2


def test_logs_survive_a_killed_server(fresh_local_modal: LocalModal) -> None:
    server = fresh_local_modal
    deploy(server, "basics")
    call = client(server, "call = f('talk').spawn(3, 4)\ncall.get()\nresult = call.object_id")
    read = "result = [str(entry) for entry in modal.FunctionCall.from_id(call).logs.tail()]"
    assert "000002xxxx" in "".join(client(server, read, call=call))
    server.kill()
    server.start()
    assert "000002xxxx" in "".join(client(server, read, call=call))
    assert "000002xxxx" in modal(server, "app", "logs", "basics")

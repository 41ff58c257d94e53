"""Function calls through the stock SDK."""

from __future__ import annotations

import uuid

import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import client, deploy


def test_spawn_get_and_from_id_are_repeatable(isolated_server: LocalModal) -> None:
    result = client(
        isolated_server,
        "call = f('square').spawn(7)\n"
        "again = modal.FunctionCall.from_id(call.object_id)\n"
        "result = [call.get(), call.get(), again.get(timeout=0), again.num_inputs()]",
    )
    assert result == [49, 49, 49, 1]


def test_map_keeps_order_and_max_containers(isolated_server: LocalModal) -> None:
    assert client(isolated_server, "result = list(f('square').map(range(100)))") == [
        x * x for x in range(100)
    ]
    assert 1 <= len(isolated_server.tasks("square")) <= 2


def test_an_exception_keeps_its_type(isolated_server: LocalModal) -> None:
    result = client(
        isolated_server,
        "try:\n    f('fail').remote('no such thing')\n"
        "except LookupError as error:\n    result = [type(error).__name__, str(error)]",
    )
    assert result == ["LookupError", "no such thing"]


@pytest.mark.parametrize("length", [0, 100_000, 5_000_000])
def test_large_arguments_and_results_travel_as_blobs(isolated_server: LocalModal, length: int) -> None:
    code = "data = f('size').spawn(b'x' * length).get()\nresult = [len(data), data[-1:].decode()]"
    assert client(isolated_server, code, length=length) == [length + 1, "!"]


def test_get_times_out_while_the_call_runs(isolated_server: LocalModal) -> None:
    result = client(
        isolated_server,
        "call = f('gated').spawn(key)\n"
        "begin = time.time()\n"
        "try:\n    call.get(timeout=0.3); result = 0\n"
        "except TimeoutError:\n    result = time.time() - begin\n"
        "modal.Dict.from_name('basics-notes', create_if_missing=True)[key] = True\n"
        "assert call.get().startswith('ta-')",
        key=uuid.uuid4().hex,
    )
    assert result > 0.2


def test_a_function_calls_another_one(isolated_server: LocalModal) -> None:
    assert client(isolated_server, "result = f('nested').remote(6)") == 37


def test_generators_stream(isolated_server: LocalModal) -> None:
    assert client(isolated_server, "result = list(f('generate').remote_gen(5))") == [0, 1, 2, 3, 4]


def test_unknown_names_are_not_found(isolated_server: LocalModal) -> None:
    result = client(
        isolated_server,
        "result = []\n"
        "for app, name in [('basics', 'nope'), ('nope', 'nope')]:\n"
        "    try:\n        f(name, app).remote()\n"
        "    except modal.exception.NotFoundError as error:\n        result.append(str(error))\n"
        "try:\n    modal.FunctionCall.from_id('fc-nope').get()\n"
        "except modal.exception.NotFoundError as error:\n        result.append(str(error))\n",
    )
    assert len(result) == 3


def test_warm_containers_are_used_again(isolated_server: LocalModal) -> None:
    code = "result = [f('describe').remote()['environ']['MODAL_TASK_ID'] for _ in range(4)]"
    assert len(set(client(isolated_server, code))) == 1


def test_idle_containers_go_after_the_scaledown_window(isolated_server: LocalModal) -> None:
    client(isolated_server, "result = f('short_lived').remote()")
    wait_until(lambda: not isolated_server.tasks("short_lived"), 30, "the idle container is gone")


def test_retries_follow_the_policy(isolated_server: LocalModal) -> None:
    assert client(isolated_server, "result = f('flaky').spawn(key).get()", key=uuid.uuid4().hex) == 3


@pytest.mark.parametrize(("how", "until"), [("exit", 3), ("kill", 2)])
def test_an_input_whose_container_died_starts_again(server: LocalModal, how: str, until: int) -> None:
    key = uuid.uuid4().hex
    code = "call = f('attempts').spawn(key, until, how)\nresult = call.object_id"
    call_id = client(server, code, key=key, until=until, how=how)
    counted = "result = modal.Dict.from_name('basics-notes', create_if_missing=True).get(key)"
    for attempt in range(1, until if how == "kill" else 1):
        wait_until(lambda attempt=attempt: client(server, counted, key=key) == attempt, 30, "it has begun")
        [task] = [t for t in server.tasks("attempts") if t["running_inputs"]]
        server.control("kill", task_id=task["task_id"])
        _wait_until_gone(server, task["task_id"])
    assert client(server, f"result = modal.FunctionCall.from_id({call_id!r}).get()")[0] == until


def _wait_until_gone(server: LocalModal, task_id: str) -> None:
    wait_until(lambda: task_id not in [task["task_id"] for task in server.tasks()])


def test_with_options_has_a_pool_of_its_own_and_replaces_secrets(isolated_server: LocalModal) -> None:
    result = client(
        isolated_server,
        "base = f('describe')\n"
        "variant = base.with_options(env={'DATA_DIR': 'elsewhere', 'EXTRA': '1'})\n"
        "longer, same = [f('describe').with_options(timeout=77) for _ in range(2)]\n"
        "result = [fn.remote()['environ'] for fn in (base, variant, longer, same)]",
    )
    plain, changed, longer, same = result
    assert plain["SECRET"] == "s3cret" and "EXTRA" not in plain
    assert changed["EXTRA"] == "1" and changed["DATA_DIR"] == "elsewhere" and "SECRET" not in changed
    assert len({each["MODAL_TASK_ID"] for each in (plain, changed, longer)}) == 3
    assert longer["MODAL_TASK_ID"] == same["MODAL_TASK_ID"] and longer["SECRET"] == "s3cret"


QUOTAS = [
    "--quota",
    "pending_inputs=3",
    "--quota",
    "pending_spawned=5",
    "--quota",
    "awaited_result_seconds=60",
]


def test_more_inputs_than_modal_takes_are_refused_and_results_expire() -> None:
    """`spawn_map` waits for room, as the SDK has it; everything else is told."""
    with LocalModal(arguments=[*QUOTAS, "--stop-grace", "1"]) as server:
        deploy(server, "limited", VERSION="one")
        result = client(
            server,
            "import threading\n"
            "version, refused = f('version', 'limited'), []\n"
            "first = version.spawn('told')\n"
            "while f('version', 'limited').get_current_stats().backlog: time.sleep(0.02)\n"
            "calls = [version.spawn() for _ in range(5)]\n"
            "for attempt in (version.spawn, version.remote):\n"
            "    try:\n        attempt(); refused.append('taken')\n"
            "    except modal.exception.ResourceExhaustedError as error: refused.append(str(error))\n"
            "notes = modal.Dict.from_name('limited-notes')\n"
            "threading.Timer(0.3, notes.put, ['told', True]).start()\n"
            "version.spawn_map(['', '', ''])\n"
            "answers = [call.get() for call in [first, *calls]]\n"
            "result = [refused, answers, first.object_id]",
        )
        refused, answers, call_id = result
        assert "5 pending inputs; 1 more would exceed the limit of 5" in refused[0]
        assert "exceed the limit of 3" in refused[1] and answers == ["one"] * 6
        expired = (
            "try:\n    result = modal.FunctionCall.from_id(call_id).get(timeout=0.5)\n"
            "except modal.exception.OutputExpiredError:\n    result = 'expired'"
        )
        server.advance(6.9 * 86_400)
        assert client(server, expired, call_id=call_id) == "one"
        server.advance(0.2 * 86_400)
        assert client(server, expired, call_id=call_id) == "expired"


def test_a_redelivered_input_runs_twice_and_ends_once(isolated_server: LocalModal) -> None:
    key = uuid.uuid4().hex
    call_id = client(isolated_server, "result = f('gated').spawn(key).object_id", key=key)
    running = wait_until(
        lambda: [t for t in isolated_server.tasks("gated") if t["running_inputs"]], 30, "it runs"
    )
    again = isolated_server.control("redeliver", task_id=running[0]["task_id"])
    assert again["task_id"] != running[0]["task_id"]

    def twice() -> bool:
        both = [t for t in isolated_server.tasks("gated") if t["running_inputs"]]
        return len(both) == 2 and len({t["running_inputs"][0]["input_id"] for t in both}) == 1

    wait_until(twice, 30, "both run the same input")
    code = (
        "modal.Dict.from_name('basics-notes')[key] = True\n"
        "call = modal.FunctionCall.from_id(call_id)\n"
        "result = [call.get(), call.get(), call.num_inputs()]"
    )
    first, second, inputs = client(isolated_server, code, key=key, call_id=call_id)
    assert first == second in (running[0]["task_id"], again["task_id"]) and inputs == 1

"""What each fault looks like to an application that uses the SDK."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import modal
import pytest

from local_modal.testing import ControlError, LocalModal, wait_until
from tests.integration.local_modal.conftest import deploy
from tests.integration.local_modal.sdk import connected, unique

NOTES = "basics-notes"


class Sdk:
    """The SDK's objects, looked up with one client."""

    def __init__(self, client: modal.Client) -> None:
        self.client = client

    def function(self, name: str, app: str = "basics") -> modal.Function:
        return modal.Function.from_name(app, name, client=self.client).hydrate(self.client)

    def dict(self, name: str = NOTES) -> modal.Dict:
        return modal.Dict.from_name(name, create_if_missing=True, client=self.client).hydrate(self.client)

    def queue(self, name: str) -> modal.Queue:
        return modal.Queue.from_name(name, create_if_missing=True, client=self.client).hydrate(self.client)


@pytest.fixture(scope="module")
def sdk(isolated_server: LocalModal) -> Iterator[Sdk]:
    with connected(isolated_server) as client:
        yield Sdk(client)


@pytest.fixture(autouse=True)
def _no_fault_stays(isolated_server: LocalModal) -> Iterator[None]:
    yield
    isolated_server.clear_faults()


def in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Start `work`; returns a function that waits for its result."""
    results: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=lambda: results.put(work()), daemon=True).start()
    return lambda: results.get(timeout=60)


def none_of(server: LocalModal, function: str) -> None:
    """Let a function have no container."""
    if server.tasks(function):
        server.kill_container(function)
    wait_until(lambda: not server.tasks(function))


@pytest.mark.parametrize(
    ("fault", "settings"),
    [("fail", {"status": "UNAVAILABLE"}), ("lose", {}), ("lose", {"connection": True}), ("twice", {})],
)
def test_the_sdk_repeats_a_call_and_the_function_runs_once(
    isolated_server: LocalModal, sdk: Sdk, fault: str, settings: dict[str, Any]
) -> None:
    key = unique("once")
    attempts = sdk.function("attempts")
    with isolated_server.fault(fault, rpc="FunctionMap", count=2, caller="client", **settings) as struck:
        assert attempts.remote(key, 1, "")[0] == 1
        assert struck.struck >= 1
    assert sdk.dict()[key] == 1


@pytest.mark.parametrize("fault", ["lose", "twice"])
def test_an_input_that_a_container_never_heard_of_is_handed_out_again(
    isolated_server: LocalModal, sdk: Sdk, fault: str
) -> None:
    """What the SDK says of Modal: its lease expires, and the same attempt is delivered once more."""
    attempts = sdk.function("attempts")
    attempts.remote(unique("warm"), 1, "")
    key = unique("unheard")
    with isolated_server.fault(fault, rpc="FunctionGetInputs", function="attempts", count=1) as struck:
        for number in range(3):
            assert attempts.remote(f"{key}-{number}", 1, "")[0] == 1
        assert struck.struck == 1
    assert [sdk.dict()[f"{key}-{number}"] for number in range(3)] == [1, 1, 1]


def test_a_call_executed_twice_without_regard_to_its_key_runs_twice(
    isolated_server: LocalModal, sdk: Sdk
) -> None:
    """What an application must bear of a service that only promises at least once."""
    key = unique("twice")
    attempts = sdk.function("attempts")
    with isolated_server.fault("twice", rpc="FunctionMap", count=1, forget_key=True):
        attempts.remote(key, 1, "")
    notes = sdk.dict()
    wait_until(lambda: notes[key] == 2)


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        ("PERMISSION_DENIED", modal.exception.PermissionDeniedError),
        ("NOT_FOUND", modal.exception.NotFoundError),
        ("FAILED_PRECONDITION", modal.exception.ConflictError),
    ],
)
def test_a_status_that_the_sdk_does_not_repeat_reaches_the_application(
    isolated_server: LocalModal, sdk: Sdk, status: str, raised: type[Exception]
) -> None:
    notes = sdk.dict()
    with isolated_server.fault("fail", rpc="DictGet", status=status, message="no luck") as fault:
        with pytest.raises(raised, match=f"no luck .*{fault.id}"):
            notes.get("x")
        assert fault.struck == 1


def test_a_status_that_stays_is_repeated_three_times_and_given_up(
    isolated_server: LocalModal, sdk: Sdk
) -> None:
    notes = sdk.dict()
    with isolated_server.fault("fail", rpc="DictGet") as fault:
        with pytest.raises(modal.exception.ServiceError):
            notes.get("x")
        assert fault.struck == 4


def test_an_item_whose_put_was_answered_twice_is_there_once(isolated_server: LocalModal, sdk: Sdk) -> None:
    items = sdk.queue(unique("items"))
    with isolated_server.fault("twice", rpc="QueuePut") as fault:
        items.put("a")
        assert fault.struck == 1 and items.len() == 1
    with isolated_server.fault("lose", rpc="QueuePut,QueueGet", count=2):
        items.put("b")
        assert items.get_many(10, block=False) == ["a", "b"]
    with isolated_server.fault("twice", rpc="QueuePut", forget_key=True):
        items.put("c")
        assert items.len() == 2


def test_answers_come_late(isolated_server: LocalModal, sdk: Sdk) -> None:
    notes = sdk.dict()
    for kind in ("late", "latency"):
        with isolated_server.fault(kind, rpc="DictGet", delay=0.3):
            began = time.monotonic()
            notes.get("x")
            assert time.monotonic() - began >= 0.3


def test_a_stalled_call_waits_for_its_client_or_for_the_end_of_the_fault(
    isolated_server: LocalModal, sdk: Sdk
) -> None:
    notes = sdk.dict()
    notes["there"] = 1
    with isolated_server.fault("stall", rpc="DictGet") as fault:
        answer = in_background(lambda: notes.get("there"))
        wait_until(lambda: fault.struck == 1)
    assert answer() == 1  # the SDK has repeated it


def test_a_fault_for_one_function_spares_all_others(isolated_server: LocalModal, sdk: Sdk) -> None:
    nested, square = sdk.function("nested"), sdk.function("square")
    with isolated_server.fault("fail", rpc="FunctionMap", function="nest*", status="ABORTED") as fault:
        assert square.remote(2) == 4
        with pytest.raises(modal.exception.ConflictError):
            nested.remote(2)
        assert fault.struck == 1
    assert nested.remote(2) == 5


def test_a_full_queue_is_full_for_its_producers_only(isolated_server: LocalModal, sdk: Sdk) -> None:
    name = unique("full")
    full, other = sdk.queue(name), sdk.queue(unique("other"))
    full.put(1)
    with isolated_server.fault("queue-full", object=name) as fault:
        with pytest.raises(queue.Full):
            full.put(2, block=False)
        other.put(1, block=False)
        assert full.get() == 1
        blocked = in_background(lambda: full.put(3, timeout=60))
        wait_until(lambda: fault.struck >= 2)
    blocked()
    assert full.get() == 3


def test_entries_of_a_dict_expire(isolated_server: LocalModal, sdk: Sdk) -> None:
    name = unique("forgetful")
    notes = sdk.dict(name)
    notes.update({"a": 1, "b": 2, 3: "c"})
    assert isolated_server.control("expire", dict=name, keys=["a", "nope"]) == {"expired": 1}
    assert "a" not in notes and notes["b"] == 2
    assert isolated_server.control("expire", dict=name) == {"expired": 2}
    assert notes.len() == 0
    with pytest.raises(ControlError, match="no Dict 'nowhere'"):
        isolated_server.control("expire", dict="nowhere")


def test_a_quota_of_inputs_is_exhausted_while_too_many_wait(isolated_server: LocalModal, sdk: Sdk) -> None:
    gated = sdk.function("gated")
    none_of(isolated_server, "gated")
    with isolated_server.fault("start-stalls", function="gated"):
        waiting = gated.spawn(unique("never"))
        with isolated_server.fault("quota-inputs", object="gated", limit=1):
            with pytest.raises(modal.exception.ResourceExhaustedError, match="pending inputs"):
                gated.spawn(unique("never"))
            waiting.cancel()
            gated.spawn(unique("never")).cancel()


def test_a_container_waits_for_capacity(isolated_server: LocalModal, sdk: Sdk) -> None:
    short_lived = sdk.function("short_lived")
    none_of(isolated_server, "short_lived")
    with isolated_server.fault("start-stalls", function="short_lived") as fault:
        call = short_lived.spawn()
        wait_until(lambda: fault.struck)
        with pytest.raises(TimeoutError):
            call.get(timeout=0.2)
        [task] = isolated_server.tasks("short_lived")
        assert task["pid"] is None and not task["ready"]
    assert call.get(timeout=60).startswith("ta-")


def test_a_container_that_can_not_start_is_followed_by_another(isolated_server: LocalModal, sdk: Sdk) -> None:
    none_of(isolated_server, "flaky")
    with isolated_server.fault("start-fails", function="flaky", count=1) as fault:
        assert sdk.function("flaky").remote(unique("flaky")) == 3
        assert fault.struck == 1
    assert f"The image could not be pulled. [fault {fault.id}]" in isolated_server.log


def test_a_large_argument_survives_a_cut_of_the_way_to_the_blobs(
    isolated_server: LocalModal, sdk: Sdk
) -> None:
    data = b"x" * 3 * 2**20
    with isolated_server.fault("http-cut", rpc="HTTP GET /blob/*", count=1) as cut:
        with isolated_server.fault("fail", rpc="HTTP PUT /blob/*", count=1) as failed:
            assert sdk.function("size").remote(data) == data + b"!"
            assert (cut.struck, failed.struck) == (1, 1)


def test_a_volume_is_in_use_when_the_fault_says_so(isolated_server: LocalModal, sdk: Sdk) -> None:
    deploy(isolated_server, "data_mounts")
    one = sdk.function("one", "data-mounts")
    code = (
        "try:\n    shared.reload(); result = 'reloaded'\nexcept Exception as error:\n    result = str(error)"
    )
    with isolated_server.fault("reload-refused", object="data-shared") as fault:
        assert "open files" in one.remote(code, {})
        assert fault.struck == 1
    assert one.remote(code, {}) == "reloaded"


def test_the_world_stops_containers_too(isolated_server: LocalModal, sdk: Sdk) -> None:
    notes = sdk.dict()
    key = unique("watching")
    call = sdk.function("stands_still").spawn(key, 2.0)
    wait_until(lambda: key in notes, seconds=60)
    isolated_server.control("pause", seconds=2.0, containers=True)
    assert call.get(timeout=90) >= 2.0
    with pytest.raises(ControlError, match="at most 600"):
        isolated_server.control("pause", seconds=1e9)

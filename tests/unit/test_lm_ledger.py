"""How long calls and results are kept, and in how much memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from modal_proto import api_pb2 as api

from local_modal.calls import Call
from local_modal.clock import SystemClock
from local_modal.ledger import CALLS, INPUTS, READ_SECONDS, Ledger
from local_modal.quotas import DAY, Quotas
from local_modal.rpc import RpcError
from local_modal.server import Options, Server

SPAWNED, AWAITED = api.FUNCTION_CALL_INVOCATION_TYPE_ASYNC, api.FUNCTION_CALL_INVOCATION_TYPE_SYNC


class World:
    """A server that isn't started, and calls that come and end without functions or containers."""

    def __init__(self, state_dir: Path) -> None:
        self.clock = SystemClock()
        self.server = Server(Options(state_dir), self.clock)
        self.ledger = self.server.engine.ledger

    def call(self, number: int, kind: int = SPAWNED, size: int = 10, durable: bool = False) -> Call:
        call = Call(f"fc-{number}", "fu-1", "ap-1", 0, kind, self.clock.time(), durable=durable)
        self.ledger.calls[call.call_id] = call
        if durable:
            self.server.store.put(CALLS, call.call_id, call.to_bytes())
        item = self.ledger.add(call, 0, api.FunctionInput(args=b"x" * 100))
        result = api.GenericResult(data=b"x" * size)
        output = api.FunctionGetOutputsItem(result=result, output_created_at=self.clock.time())
        self.ledger.finish(item, output)
        return call


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    yield found
    found.server.store.close()


def test_results_of_spawned_calls_live_for_a_week_those_of_awaited_ones_shorter(world: World) -> None:
    world.call(1, SPAWNED)
    world.call(2, AWAITED)
    world.clock.advance(3_601)
    assert world.ledger.get("fc-1") and world.ledger.has_expired("fc-2")
    world.clock.advance(7 * DAY - 3_700)
    assert world.ledger.get("fc-1") and not world.ledger.has_expired("fc-1")
    world.clock.advance(100)
    with pytest.raises(RpcError):
        world.ledger.get("fc-1")
    assert world.ledger.has_expired("fc-1") and not world.ledger.has_expired("fc-3")
    assert not world.ledger.inputs and world.ledger.finished_bytes == 0


def test_too_many_finished_calls_go_the_awaited_ones_first(world: World) -> None:
    world.server.quotas.finished_calls = 100
    for number in range(80):
        world.call(number, SPAWNED)
    for number in range(80, 180):
        world.call(number, AWAITED)
        world.clock.advance(READ_SECONDS)
    assert len(world.ledger.calls) == len(world.ledger.inputs) == 100
    assert all(f"fc-{number}" in world.ledger.calls for number in range(80))
    assert f"fc-{179}" in world.ledger.calls and world.ledger.has_expired("fc-80")
    for number in range(180, 300):
        world.call(number, SPAWNED)
    assert list(world.ledger.calls) == [f"fc-{number}" for number in range(200, 300)]


def test_a_forgotten_call_is_freed_at_once(world: World) -> None:
    """The garbage collector takes its time where so much is kept."""
    gc.disable()
    try:
        world.server.quotas.finished_calls = 1
        # An input itself can't be referred to weakly.
        forgotten = weakref.ref(world.call(1).inputs[0].running_on)
        assert forgotten() is not None
        world.call(2)
        assert forgotten() is None
    finally:
        gc.enable()


def test_what_is_awaited_can_be_read_though_the_spawned_ones_are_as_many_as_are_kept(world: World) -> None:
    world.server.quotas.finished_calls = 3
    for number in range(3):
        world.call(number, SPAWNED)
    for number in range(3, 5):
        world.call(number, AWAITED)
    assert list(world.ledger.calls) == ["fc-2", "fc-3", "fc-4"]
    world.clock.advance(READ_SECONDS)
    world.call(5, SPAWNED)
    assert list(world.ledger.calls) == ["fc-2", "fc-4", "fc-5"]


def test_large_results_are_bounded_by_their_bytes(world: World) -> None:
    world.server.quotas.finished_bytes = 10_000_000
    for number in range(30):
        world.call(number, size=1_000_000)
    assert len(world.ledger.calls) == 9 and world.ledger.finished_bytes <= 10_000_000
    world.call(30, AWAITED, size=11_000_000)
    assert list(world.ledger.calls) == ["fc-30"], "its caller is about to read it"
    world.call(31)
    assert list(world.ledger.calls) == ["fc-31"]


def test_a_call_that_goes_on_is_not_forgotten(world: World) -> None:
    """A map puts its inputs little by little, and may be without an unfinished one for a while."""
    call = world.call(1, AWAITED)
    world.ledger.add(call, 1, api.FunctionInput())
    world.clock.advance(10 * DAY)
    world.server.quotas.finished_calls = 0
    world.call(2)
    assert world.ledger.get("fc-1") is call and world.ledger.finished_bytes == 0


def test_what_is_forgotten_is_gone_from_the_store_and_the_rest_is_read_back(world: World) -> None:
    world.server.quotas.finished_calls = 2
    for number in range(5):
        world.call(number, durable=True)
    assert len(world.server.store.load(CALLS)) == len(world.server.store.load(INPUTS)) == 2
    again = Ledger(world.server)
    assert again.load() == []
    assert list(again.calls) == ["fc-3", "fc-4"] and again.finished_bytes == world.ledger.finished_bytes
    world.clock.advance(8 * DAY)
    once_more = Ledger(world.server)
    assert once_more.load() == [] and once_more.has_expired("fc-4") and not once_more.calls
    assert not world.server.store.load(CALLS)


def test_unfinished_inputs_are_read_back_in_their_order_though_some_were_kept_again(world: World) -> None:
    calls = []
    for number in (2, 1):  # not in the order of their names
        call = Call(f"fc-{number}", "fu-1", "ap-1", 0, SPAWNED, world.clock.time(), durable=True)
        world.ledger.calls[call.call_id] = call
        world.server.store.put(CALLS, call.call_id, call.to_bytes())
        calls.append(call)
        for index in range(3):
            world.ledger.add(call, index, api.FunctionInput())
        world.clock.advance(1)
    world.ledger.keep(calls[0].inputs[0])  # as at a retry
    read_back = [(item.call.call_id, item.index) for item in Ledger(world.server).load()]
    assert read_back == [("fc-2", 0), ("fc-2", 1), ("fc-2", 2), ("fc-1", 0), ("fc-1", 1), ("fc-1", 2)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pending=5", "no quota 'pending'"),
        ("pending_inputs=many", "'many' is not a number"),
        ("total_inputs=-1", "must not be negative"),
    ],
)
def test_a_wrong_quota_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Quotas.parse([text])


def test_quotas_are_set_by_name() -> None:
    quotas = Quotas.parse(["pending_inputs=5", "spawned_result_seconds=0.5"])
    assert (quotas.pending_inputs, quotas.spawned_result_seconds, quotas.total_inputs) == (5, 0.5, 25_000)

"""What the engine makes of what containers tell, without containers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from modal_proto import api_pb2 as api

from local_modal.calls import Call, Input
from local_modal.engine import Engine
from local_modal.model import Task
from local_modal.rpc import _AnswerCache
from local_modal.scheduler import PoolKey, PoolSettings
from local_modal.server import Options, Server

KEY = PoolKey("fu-1", 1)


def with_input(state_dir: Path, scenario: Callable[[Engine, Task, Input], Awaitable[None]]) -> None:
    """Run a scenario with one container, `ta-1`, that has the first attempt of one input, `in-1`."""

    async def run() -> None:
        server = Server(Options(state_dir))
        try:
            engine, now = server.engine, server.clock.time()
            call = Call("fc-1", KEY.function_id, "ap-1", 0, 0, now)
            item = Input("in-1", call, 0, api.FunctionInput())
            call.inputs.append(item)
            engine.ledger.calls[call.call_id], engine.ledger.inputs[item.input_id] = call, item
            task = Task("ta-1", call.app_id, KEY.function_id, "f", "main", now)
            engine.tasks[task.task_id] = task
            engine.scheduler.ensure_pool(KEY, PoolSettings(concurrency=2))
            engine.scheduler.started(task.task_id, KEY, now)
            await hand_out(engine, item)
            await scenario(engine, task, item)
        finally:
            server.store.close()

    asyncio.run(run())


async def hand_out(engine: Engine, item: Input) -> None:
    engine.scheduler.submit(KEY, item.input_id, engine.server.clock.time())
    response = await engine.server.desk.next_inputs("ta-1")
    assert [given.input_id for given in response.inputs] == [item.input_id]


def failure(attempt: int) -> api.FunctionPutOutputsItem:
    result = api.GenericResult(status=api.GenericResult.GENERIC_STATUS_FAILURE)
    return api.FunctionPutOutputsItem(input_id="in-1", result=result, retry_count=attempt)


def test_an_output_that_is_repeated_does_not_end_the_next_attempt_in_the_same_container(
    tmp_path: Path,
) -> None:
    async def scenario(engine: Engine, task: Task, item: Input) -> None:
        # The first attempt has failed, the answer to that got lost, and the container has the next one.
        engine.scheduler.finished(task.task_id, item.input_id, 0.0)
        item.retry_count = 1
        await hand_out(engine, item)
        engine.put_output(task.task_id, failure(attempt=0))
        assert engine.scheduler.gone(task.task_id, 1.0) == [item.input_id], "it still has a time limit"
        assert not item.done and item.running_on == {task.task_id}

    with_input(tmp_path, scenario)


def test_the_output_of_the_present_attempt_ends_it(tmp_path: Path) -> None:
    async def scenario(engine: Engine, task: Task, item: Input) -> None:
        item.cancel_requested = True  # so that there is no other
        engine.put_output(task.task_id, failure(attempt=0))
        assert engine.scheduler.gone(task.task_id, 1.0) == [] and item.done
        assert not task.attempts

    with_input(tmp_path, scenario)


def test_an_input_that_takes_too_long_is_stopped_though_its_call_is_forgotten(tmp_path: Path) -> None:
    async def scenario(engine: Engine, task: Task, item: Input) -> None:
        del engine.ledger.inputs[item.input_id]
        engine.stopper.input_timed_out(task, item.input_id, 5.0)
        assert task.stop_reason == "an input timed out" and not engine.scheduler.slots["ta-1"].running

    with_input(tmp_path, scenario)


def test_answers_for_repeats_are_bounded_by_their_number_and_their_bytes() -> None:
    async def scenario() -> None:
        cache = _AnswerCache(kept=10, kept_bytes=10_000)
        executed: list[int] = []

        async def answer(number: int, size: int) -> api.DictGetResponse:
            async def execute() -> api.DictGetResponse:
                executed.append(number)
                return api.DictGetResponse(value=b"x" * size)

            return await cache.run(("DictPop", str(number)), execute)

        for number in range(12):
            await answer(number, 10)
        await answer(2, 10)
        assert executed == list(range(12)), "the last ten are kept"
        await answer(1, 10)
        assert executed[-1] == 1 and len(executed) == 13
        await answer(20, 9_990)
        await answer(11, 10)
        assert executed[-1] == 11, "the large one has displaced all others"

    asyncio.run(scenario())

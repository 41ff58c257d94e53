"""Functions that are more than a call and its result: batches, generators, classes, concurrency, maps."""

from __future__ import annotations

import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import client, deploy


@pytest.fixture(scope="module")
def shapes(isolated_server: LocalModal) -> LocalModal:
    """The server with the app of this module."""
    deploy(isolated_server, "shapes")
    return isolated_server


def test_batches_fill_up_or_wait_for_their_time(shapes: LocalModal) -> None:
    result = client(
        shapes,
        "first = f('batch', 'shapes').remote(5)\n"
        "begin = time.monotonic()\n"
        "alone = f('batch', 'shapes').remote(6)\n"
        "waited = time.monotonic() - begin\n"
        "result = [alone, waited, list(f('batch', 'shapes').map(range(7)))]",
    )
    alone, waited, answers = result
    assert alone == [12, 1] and waited >= 0.7
    assert [doubled for doubled, _ in answers] == [2 * number for number in range(7)]
    assert sorted(size for _, size in answers) == [1, 3, 3, 3, 3, 3, 3]


def test_one_batch_of_a_map_is_not_kept_from_a_later_one_by_a_failure(shapes: LocalModal) -> None:
    """Too few arguments fail the whole batch, and nothing else."""
    code = (
        "batch = f('batch', 'shapes')\n"
        "try:\n    batch.remote(); result = []\n"
        "except Exception as error:\n    result = [type(error).__name__]\n"
        "result.append(batch.remote(1)[0])"
    )
    assert client(shapes, code) == ["InvalidError", 2]


def test_concurrent_inputs_share_one_container(shapes: LocalModal) -> None:
    tasks = client(shapes, "result = list(f('together', 'shapes').map([3, 3, 3]))")
    assert len(set(tasks)) == 1
    code = (
        "begin = time.monotonic()\ntasks = set(f('sleepers', 'shapes').map([0.5] * 10))\nresult = len(tasks)"
    )
    assert client(shapes, code) == 1


def test_one_of_many_concurrent_inputs_is_cancelled_alone(shapes: LocalModal) -> None:
    result = client(
        shapes,
        "sleepers = f('sleepers', 'shapes')\n"
        "sleepers.remote(0)\n"  # the SDK loses a cancellation that comes before the input has begun
        "long, short = sleepers.spawn(60), sleepers.spawn(1.5)\n"
        "time.sleep(0.7)\n"
        "long.cancel()\n"
        "event = modal.Queue.from_name('shapes-events', create_if_missing=True).get(timeout=60)\n"
        "try:\n    long.get(); ended = 'finished'\n"
        "except (modal.exception.RemoteError, modal.exception.InputCancellation):\n    ended = 'cancelled'\n"
        "result = [event, ended, short.get().startswith('ta-')]",
    )
    assert result == ["cancelled", "cancelled", True]


def test_generators_stream_fail_and_carry_much(shapes: LocalModal) -> None:
    result = client(
        shapes,
        "count, seen = f('count', 'shapes'), []\n"
        "try:\n    for number in count.remote_gen(5, fail_at=2): seen.append(number)\n"
        "except LookupError as error:\n    seen.append(str(error))\n"
        "sizes = [len(block) for block in f('blocks', 'shapes').remote_gen(3, 3_000_000)]\n"
        "result = [seen, list(count.remote_gen(3)), list(count.remote_gen(0)), sizes]",
    )
    assert result == [[0, 1, "at 2"], [0, 1, 2], [], [3_000_000] * 3]


def test_a_class_is_entered_once_per_container_and_left_at_its_end(shapes: LocalModal) -> None:
    result = client(
        shapes,
        "Counter = modal.Cls.from_name('shapes', 'Counter')\n"
        "five, six = Counter(start=5, name='five'), Counter(start=6, name='six')\n"
        "result = [five.add.remote(1), five.add.remote(1), six.add.remote(1)]\n"
        "result.append(list(five.up_to.remote_gen(9)))\n"
        "result.append(Counter.with_options(timeout=50)(start=5, name='other').add.remote(2))",
    )
    assert result == [6, 7, 7, [7, 8], 7]
    tasks = wait_until(lambda: shapes.tasks("Counter.*"))
    assert len(tasks) == 3
    # One is preempted, the others are idle for their scaledown window: all leave with their exit handler.
    shapes.control("preempt", task_id=tasks[0]["task_id"])
    wait_until(lambda: len(shapes.tasks("Counter.*")) == 2)
    shapes.advance(120)
    code = "result = [modal.Queue.from_name('shapes-events').get(timeout=60) for _ in range(3)]"
    assert sorted(client(shapes, code)) == ["five ended at 7", "other ended at 7", "six ended at 7"]


def test_map_returns_in_order_or_as_it_comes_and_exceptions_if_asked(shapes: LocalModal) -> None:
    result = client(
        shapes,
        "inverse = f('inverse', 'shapes')\n"
        "list(inverse.map([2] * 4))  # all containers are warm\n"
        "quick = list(inverse.map([1, 2, 4], order_outputs=False))\n"
        "mixed = list(inverse.map([2, 0, 4], return_exceptions=True, wrap_returned_exceptions=False))\n"
        "try:\n    list(inverse.map([2, 0])); failed = 'nothing'\n"
        "except ZeroDivisionError as error:\n    failed = str(error)\n"
        "result = [list(inverse.map([1, 2, 4])), sorted(quick), quick[-1],\n"
        "    [type(each).__name__ for each in mixed], failed, list(inverse.starmap([(1,), (2,)]))]",
    )
    in_order, quick, last, kinds, failed, starred = result
    assert in_order == [1.0, 0.5, 0.25] and quick == [0.25, 0.5, 1.0] and last == 1.0
    assert kinds == ["float", "ZeroDivisionError", "float"]
    assert "division by zero" in failed and starred == [1.0, 0.5]


def test_spawn_map_runs_everything_and_returns_nothing(shapes: LocalModal) -> None:
    """`spawn_map` makes a call per input; `experimental_spawn_map` makes one and returns it."""
    result = client(
        shapes,
        "notes = modal.Queue.from_name('shapes-notes', create_if_missing=True)\n"
        "note, inverse = f('note', 'shapes'), f('inverse', 'shapes')\n"
        "returned = note.spawn_map(range(5))\n"
        "seen = sorted(notes.get(timeout=60) for _ in range(5))\n"
        "call = inverse.experimental_spawn_map([1, 2, 4, 5])\n"
        "again = modal.FunctionCall.from_id(call.object_id)\n"
        "result = [returned, seen, call.num_inputs(), list(again.iter()), call.get(index=2)]",
    )
    assert result == [None, [0, 1, 2, 3, 4], 4, [1.0, 0.5, 0.25, 0.2], 0.25]


def test_a_map_of_many_inputs_stays_within_its_containers(shapes: LocalModal) -> None:
    code = "result = sum(f('inverse', 'shapes').map([2] * 1050))"  # more than may be outstanding
    assert client(shapes, code) == 525.0
    assert len(shapes.tasks("inverse")) <= 4

"""The order in which inputs start."""

from __future__ import annotations

import math
import random

from local_modal.input_queue import InputQueue


def test_those_that_had_a_turn_come_first_once_their_time_has_come() -> None:
    queue = InputQueue()
    queue.add("new", 1.0)
    queue.add_again("later", 1.0, 5.0)
    queue.add_again("soon", 1.0, 2.0)
    assert queue.due(2.0) == 1 and queue.next_due() == 3.0 and len(queue) == 3
    assert queue.all() == ["new", "soon", "later"]
    assert queue.due(3.0) == 2 and queue.take(1) == ["soon"] and queue.oldest() == 1.0
    assert queue.due(6.0) == 2 and queue.take(9) == ["later", "new"]
    assert queue.oldest() == queue.next_due() == math.inf and len(queue) == 0


def test_what_is_removed_does_not_start_and_may_come_again() -> None:
    queue = InputQueue()
    queue.add_again("a", 0.0, 1.0)
    assert queue.remove("a") and not queue.remove("a") and queue.next_due() == math.inf
    queue.add_again("a", 0.0, 3.0)
    assert queue.due(2.0) == 0 and queue.next_due() == 3.0
    assert queue.due(3.0) == 1 and queue.clear() == ["a"] and "a" not in queue


def test_any_sequence_keeps_count() -> None:
    chance = random.Random(7)
    queue, waiting = InputQueue(), set()
    for step in range(5_000):
        now = float(step)
        name = f"in-{chance.randrange(40)}"
        if name in waiting:
            assert queue.remove(name)
            waiting.discard(name)
        else:
            delay = chance.choice((0.0, 3.0, 20.0))
            queue.add_again(name, now, delay) if delay else queue.add(name, now)
            waiting.add(name)
        if chance.random() < 0.2:
            queue.due(now)
            waiting.difference_update(queue.take(2))
        assert len(queue) == len(waiting) and set(queue.all()) == waiting
    queue.due(math.inf)
    assert queue.next_due() == math.inf and set(queue.take(len(waiting))) == waiting


def test_inputs_that_are_queued_again_keep_their_order() -> None:
    """All at once, as after a restart, or one after the other, as they are preempted."""
    queue = InputQueue()
    queue.add("new", 0.5)
    for name in ("d", "c", "b", "a"):
        queue.add_again(name, 1.0, 0.0)
    assert queue.due(1.0) == 5 and queue.oldest() == 0.5
    queue.add_again("e", 2.0, 0.0)
    assert queue.due(2.0) == 6 and queue.all() == ["d", "c", "b", "a", "e", "new"]
    assert queue.take(4) == ["d", "c", "b", "a"] and queue.remove("new")
    assert queue.oldest() == 2.0 and queue.clear() == ["e"]

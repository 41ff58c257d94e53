"""The scheduler of containers, with numbers for time and no processes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from local_modal.scheduler import PoolKey, PoolSettings, Scheduler, restart_delay

KEY, OTHER = PoolKey("fu-one", 1), PoolKey("fu-two", 1)


class World:
    """A scheduler whose plans are carried out at once: containers start in no time and ask for inputs."""

    def __init__(self, max_containers: int = 10, **settings: Any) -> None:
        self.scheduler = Scheduler(max_containers)
        self.now = 0.0
        self.started = 0
        self.ensure(KEY, **settings)

    def ensure(self, key: PoolKey, **settings: Any) -> None:
        self.scheduler.ensure_pool(key, PoolSettings(**settings))

    def submit(self, *input_ids: str, key: PoolKey = KEY) -> None:
        for input_id in input_ids:
            self.scheduler.submit(key, input_id, self.now)

    def start(self) -> list[str]:
        """Start what is planned, without any container getting ready."""
        names = []
        for key in self.scheduler.plan(self.now).starts:
            self.started += 1
            names.append(f"ta-{self.started}")
            self.scheduler.started(names[-1], key, self.now)
        return names

    def claim(self, task_id: str) -> list[str]:
        return self.scheduler.claim(task_id, self.now).input_ids

    def step(self) -> dict[str, list[str]]:
        """Start what is planned and let every container ask once; returns what they got."""
        self.start()
        got = {}
        for task_id in list(self.scheduler.slots):
            handout = self.scheduler.claim(task_id, self.now)
            if handout.exit:
                self.scheduler.gone(task_id, self.now)
            elif handout.input_ids:
                got[task_id] = handout.input_ids
        return got

    @property
    def live(self) -> int:
        return len(self.scheduler.slots)


def test_one_container_per_waiting_input_up_to_the_limit() -> None:
    world = World(max_containers=10, **{})
    world.ensure(KEY, max_containers=3)
    world.submit("a", "b", "c", "d")
    assert len(world.start()) == 3
    assert world.start() == []


def test_inputs_are_handed_out_in_order_one_at_a_time() -> None:
    world = World()
    world.ensure(KEY, max_containers=1)
    world.submit("a", "b")
    assert world.step() == {"ta-1": ["a"]}
    world.scheduler.finished("ta-1", "a", world.now)
    assert world.step() == {"ta-1": ["b"]}


def test_a_starting_container_counts_for_one_input() -> None:
    world = World()
    world.submit("a")
    assert len(world.start()) == 1
    assert world.start() == []
    world.submit("b")
    assert len(world.start()) == 1


def test_concurrent_inputs_share_a_container() -> None:
    world = World(concurrency=3)
    world.submit("a", "b", "c", "d")
    assert len(world.start()) == 2


def test_batches_are_handed_out_together() -> None:
    world = World(batch_size=3)
    world.submit("a", "b", "c", "d")
    assert sorted(world.step().values()) == [["a", "b", "c"], ["d"]]


def test_idle_containers_exit_after_the_window_but_min_containers_stay() -> None:
    world = World(min_containers=1, scaledown_window=10)
    world.submit("a", "b")
    for task_id, inputs in world.step().items():
        world.scheduler.finished(task_id, inputs[0], world.now)
    world.now = 9.9
    world.step()
    assert world.live == 2
    assert world.scheduler.plan(world.now).wake_at == pytest.approx(10.0)
    world.now = 10.0
    world.step()
    assert world.live == 1
    world.now = 1000.0
    world.step()
    assert world.live == 1


def test_min_containers_start_without_inputs() -> None:
    assert len(World(min_containers=2).start()) == 2


def test_buffer_containers_come_on_top_while_there_is_work() -> None:
    world = World(buffer_containers=2)
    assert world.start() == []
    world.submit("a")
    assert len(world.start()) == 3


def test_single_use_containers_exit_after_one_input() -> None:
    world = World(single_use=True)
    world.submit("a", "b")
    first = world.step()
    assert sorted(first.values()) == [["a"], ["b"]]
    for task_id, inputs in first.items():
        world.scheduler.finished(task_id, inputs[0], world.now)
        assert world.scheduler.claim(task_id, world.now).exit


def test_the_cap_is_for_all_and_who_waited_longest_is_served_first() -> None:
    world = World(max_containers=1)
    world.ensure(OTHER)
    world.submit("late", key=KEY)
    world.now = -5.0
    world.submit("early", key=OTHER)
    world.now = 1.0
    plan = world.scheduler.plan(world.now)
    assert plan.starts == [OTHER] and plan.starved


def test_a_full_server_lets_an_idle_container_go_for_a_starving_function() -> None:
    world = World(max_containers=1)
    world.ensure(OTHER)
    world.submit("a")
    world.step()
    world.scheduler.finished("ta-1", "a", world.now)
    world.submit("b", key=OTHER)
    world.start()
    assert world.scheduler.claim("ta-1", world.now).exit
    world.scheduler.gone("ta-1", world.now)
    assert world.step() == {"ta-2": ["b"]}


def test_a_busy_container_is_never_taken_away() -> None:
    world = World(max_containers=1)
    world.ensure(OTHER)
    world.submit("a")
    world.step()
    world.submit("b", key=OTHER)
    assert world.start() == [] and not world.scheduler.slots["ta-1"].retiring


def test_the_death_of_a_container_gives_its_inputs_back() -> None:
    world = World()
    world.submit("a")
    world.step()
    assert world.scheduler.gone("ta-1", world.now) == ["a"]
    assert world.live == 0


def test_an_input_that_had_its_turn_comes_before_new_ones_once_its_delay_is_over() -> None:
    world = World(max_containers=1)
    world.scheduler.resubmit(KEY, "again", world.now, 2.0)
    assert world.scheduler.plan(world.now).wake_at == 2.0
    assert world.start() == []
    world.now = 2.0
    world.submit("new")
    assert world.step() == {"ta-1": ["again"]}


def test_restart_delays_double_up_to_ten_seconds() -> None:
    assert [restart_delay(losses) for losses in (1, 2, 3, 5, 6, 60)] == [0.5, 1.0, 2.0, 8.0, 10.0, 10.0]


def test_containers_that_die_before_they_are_ready_start_with_back_off() -> None:
    world = World()
    world.submit("a")
    world.start()
    world.scheduler.gone("ta-1", world.now)
    plan = world.scheduler.plan(world.now)
    assert plan.starts == [] and plan.wake_at == 0.5
    world.now = 0.5
    assert len(world.start()) == 1


def test_deadlines_of_inputs_and_starts() -> None:
    world = World(timeout=5.0, startup_timeout=3.0)
    world.submit("a")
    world.start()
    assert world.scheduler.plan(2.9).startup_timeouts == []
    assert world.scheduler.plan(3.0).startup_timeouts == ["ta-1"]
    world.now = 2.0
    assert world.claim("ta-1") == ["a"]
    assert world.scheduler.plan(6.9).input_timeouts == []
    assert world.scheduler.plan(7.0).input_timeouts == [("ta-1", "a")]
    assert world.scheduler.plan(7.0).startup_timeouts == []


def test_a_retired_pool_gives_back_what_waits_and_ends_when_its_containers_do() -> None:
    world = World()
    world.ensure(KEY, max_containers=1)
    world.submit("a", "b")
    world.step()
    world.scheduler.resubmit(KEY, "c", world.now, 100.0)
    assert world.scheduler.retire_pool(KEY) == ["b", "c"]
    assert world.start() == [] and KEY in world.scheduler.pools
    world.scheduler.finished("ta-1", "a", world.now)
    assert world.scheduler.claim("ta-1", world.now).exit
    world.scheduler.gone("ta-1", world.now)
    assert KEY not in world.scheduler.pools


def test_withdrawn_inputs_are_not_handed_out() -> None:
    world = World()
    world.submit("a")
    world.scheduler.resubmit(KEY, "b", world.now, 1.0)
    assert world.scheduler.withdraw("a") and world.scheduler.withdraw("b")
    assert not world.scheduler.withdraw("a")
    world.now = 2.0
    assert world.step() == {}
    assert world.scheduler.plan(world.now).wake_at == math.inf


def test_a_redelivered_input_occupies_both_containers() -> None:
    world = World()
    world.submit("a", "b")
    world.step()
    world.scheduler.finished("ta-2", "b", world.now)
    world.scheduler.redeliver("ta-2", "a", world.now)
    assert world.scheduler.gone("ta-2", world.now) == ["a"]
    assert "a" in world.scheduler.slots["ta-1"].running


def test_a_cancel_that_user_code_ignores_ends_its_container() -> None:
    world = World(timeout=1000.0)
    world.submit("a", "b")
    world.step()
    world.now = 10.0
    world.scheduler.cancel("ta-1", "a", world.now)
    world.scheduler.cancel("ta-2", "b", world.now)
    assert world.scheduler.plan(world.now).wake_at == 70.0
    world.scheduler.cancel("ta-1", "a", 60.0)  # asking again gives it no more time
    world.scheduler.finished("ta-2", "b", 69.0)
    assert world.scheduler.plan(69.9).ignored_cancels == []
    assert world.scheduler.plan(70.0).ignored_cancels == ["ta-1"]
    # The steps that end it have begun; they aren't begun again at every plan.
    assert world.scheduler.plan(71.0).ignored_cancels == []


def test_a_preempted_container_makes_room_at_once_and_has_no_deadlines() -> None:
    world = World(max_containers=1, timeout=5.0)
    world.ensure(KEY, max_containers=1, timeout=5.0)
    world.submit("a", "b")
    assert world.step() == {"ta-1": ["a"]}
    world.scheduler.preempt("ta-1")
    world.scheduler.resubmit(KEY, "a", world.now, 0.0)
    assert world.step() == {"ta-2": ["a"]}  # before "b", although the limit is one container
    assert world.start() == []
    world.now = 4.0
    assert world.scheduler.claim("ta-1", world.now).exit
    world.now = 6.0
    assert world.scheduler.plan(world.now).input_timeouts == [("ta-2", "a")]


def test_a_batch_waits_for_its_time_unless_it_is_full() -> None:
    world = World(batch_size=3, batch_linger=2.0)
    world.start()
    world.submit("a")
    world.start()
    assert world.claim("ta-1") == [] and world.scheduler.plan(world.now).wake_at == 2.0
    world.now = 1.0
    world.submit("b")
    assert world.claim("ta-1") == []
    world.now = 2.0  # since the first one came
    assert world.scheduler.plan(world.now).wake == ["ta-1"]
    assert world.claim("ta-1") == ["a", "b"]
    for input_id in ("a", "b"):
        world.scheduler.finished("ta-1", input_id, world.now)
    world.submit("c", "d", "e", "f")
    assert world.claim("ta-1") == ["c", "d", "e"]


def test_a_pool_that_nothing_is_in_is_forgotten_after_a_while() -> None:
    world = World()
    world.ensure(OTHER, min_containers=1)
    world.submit("a")
    world.step()
    world.now = 4_000.0
    world.step()
    assert KEY in world.scheduler.pools, "an input runs"
    world.scheduler.gone("ta-1", world.now)
    world.scheduler.gone("ta-2", world.now)
    world.step()
    world.now += 3_599.0
    world.step()
    assert KEY in world.scheduler.pools
    world.now += 1.0
    world.step()
    assert list(world.scheduler.pools) == [OTHER]

"""Does a bounded scheduler run end when, and only when, it should?"""

from __future__ import annotations

from airflow_provider_modal.scheduler.bounded import (
    ANSWER_SECONDS,
    HORIZON_SECONDS,
    LINGER_SECONDS,
    STALLED_LOOPS,
    Loop,
    Outlook,
    Step,
    StopRule,
)


class Run:
    """A stop rule with a clock and a database that the test sets."""

    def __init__(self, max_seconds: float = 100.0) -> None:
        self.now = 1000.0
        self.outlook = Outlook()
        self.looks = 0
        self.rule = StopRule(max_seconds, self._look, clock=lambda: self.now, wall=lambda: self.now)

    def _look(self) -> Outlook:
        self.looks += 1
        return self.outlook

    def after(self, **loop: int | bool) -> Step:
        return self.rule.after(Loop(**loop))  # type: ignore[arg-type]

    def ends_after(self, **loop: int | bool) -> tuple[str, float]:
        """Follow the rule with the same loop until it stops; return why and after how many seconds."""
        began = self.now
        for _ in range(10_000):
            step = self.after(**loop)
            if step.stop:
                return step.stop, self.now - began
            self.now += step.seconds or 0.01
        raise AssertionError("it never stops")


def test_nothing_to_do_ends_at_once() -> None:
    assert Run().after() == Step(stop="idle")


def test_work_goes_on_without_waiting_or_looking() -> None:
    run = Run()
    assert run.after(queued=1) == Step()
    assert run.after(events=1) == Step()
    assert run.looks == 0


def test_running_tasks_are_lingered_for() -> None:
    run = Run()
    run.after(queued=1)
    assert run.ends_after(running=1) == ("idle", LINGER_SECONDS)


def test_each_completion_restarts_the_lingering() -> None:
    run = Run()
    for _ in range(5):
        assert run.after(running=2).seconds == LINGER_SECONDS
        run.now += LINGER_SECONDS - 0.1
        assert run.after(events=1, running=2) == Step()
    assert run.ends_after(running=1) == ("idle", LINGER_SECONDS)


def test_moved_states_are_followed() -> None:
    run = Run()
    run.outlook = Outlook(moved=True)
    assert [run.after() for _ in range(20)] == [Step()] * 20
    run.outlook = Outlook()
    assert run.after().stop == "idle"


def test_what_is_possible_is_looked_at_as_long_as_it_becomes_less() -> None:
    run = Run()
    for possible in range(50, 0, -1):
        run.outlook = Outlook(possible=possible)
        assert run.after() == Step()
    run.outlook = Outlook()
    assert run.after().stop == "idle"


def test_what_stays_possible_counts_as_blocked() -> None:
    run = Run()
    run.outlook = Outlook(possible=7)
    assert [run.after() for _ in range(STALLED_LOOPS)] == [Step()] * STALLED_LOOPS
    assert run.after().stop == "idle"


def test_activity_gives_the_blocked_another_chance() -> None:
    run = Run()
    run.outlook = Outlook(possible=7)
    for _ in range(STALLED_LOOPS):
        run.after()
    run.after(events=1)
    assert run.after() == Step()


def test_what_the_clock_brings_soon_is_waited_for() -> None:
    run = Run()
    run.outlook = Outlook(next_at=run.now + 4)
    assert run.after() == Step(seconds=4)


def test_what_the_clock_brings_later_is_left_to_the_next_run() -> None:
    run = Run()
    run.outlook = Outlook(next_at=run.now + HORIZON_SECONDS + 1)
    assert run.after().stop == "idle"


def test_what_became_due_during_the_look_is_not_missed() -> None:
    run = Run()
    run.outlook = Outlook(next_at=run.now - 0.001)
    assert run.after() == Step()


def test_unanswered_submissions_keep_the_run_alive_but_not_for_ever() -> None:
    run = Run()
    reason, seconds = run.ends_after(busy=True, running=1)
    assert reason == "unanswered"
    assert ANSWER_SECONDS <= seconds < ANSWER_SECONDS + 1


def test_answered_submissions_reset_the_wait() -> None:
    run = Run()
    for _ in range(3):
        for _ in range(30):
            step = run.after(busy=True)
            assert step.stop is None
            run.now += step.seconds
        run.after(events=1)


def test_time_used_up_ends_everything() -> None:
    run = Run(max_seconds=10)
    run.now += 10
    assert run.after(queued=5, events=5, busy=True).stop == "budget"


def test_no_wait_goes_beyond_the_time() -> None:
    run = Run(max_seconds=1)
    run.outlook = Outlook(next_at=run.now + 9)
    assert run.after() == Step(seconds=1)


def test_endless_movement_ends_with_the_time() -> None:
    run = Run(max_seconds=3)
    run.outlook = Outlook(moved=True)
    reason, seconds = run.ends_after()
    assert reason == "budget"
    assert seconds < 3.1

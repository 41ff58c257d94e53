"""When does a piece of scheduling end, and how long does it wait before it looks again?

It goes on while anything moves, reacts to completions as they come instead of sleeping, lingers a little
while tasks run (the next completion is often near), waits for what the clock will bring within seconds, and
ends as soon as only an event from outside can move anything: whoever causes that event wakes the next run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Reason = Literal["idle", "budget", "unanswered"]
"""``idle``: nothing can move without an event from outside. ``budget``: the time is used up, there may be
more to do. ``unanswered``: Modal did not answer submissions in time; the next run takes care of them."""

LINGER_SECONDS = 1.5
"""How long to wait for another completion while tasks run."""
HORIZON_SECONDS = 10.0
"""What the clock brings within this time (a retry, a scheduled run) is waited for."""
ANSWER_SECONDS = 30.0
"""How long submissions to Modal may stay unanswered before the run ends all the same."""
STALLED_LOOPS = 3
"""After so many loops without progress, what the database shows as possible counts as blocked."""
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Loop:
    """What one loop of Airflow's scheduler did and left.

    :param queued: task instances handed to the executor.
    :param events: completions and other events taken from the executor.
    :param running: task instances that the executor has.
    :param busy: submissions have not been answered by Modal yet.
    """

    queued: int = 0
    events: int = 0
    running: int = 0
    busy: bool = False


@dataclass(frozen=True)
class Outlook:
    """What the database shows after an idle loop.

    :param moved: the loop changed states; the next one may find the consequences.
    :param possible: how many runs and DAGs wait to be looked at.
    :param next_at: when, after the loop began, the clock makes something possible; seconds since the epoch,
        None if never.
    """

    moved: bool = False
    possible: int = 0
    next_at: float | None = None


@dataclass(frozen=True)
class Step:
    """What to do next: stop for a reason, or wait up to ``seconds`` for an event and loop again."""

    stop: Reason | None = None
    seconds: float = 0.0


@dataclass
class StopRule:
    """Decides after every loop. One instance serves one run.

    :param max_seconds: time for the whole run.
    :param outlook: looks into the database; called after idle loops only.
    :param clock: monotonic seconds.
    :param wall: seconds since the epoch.
    """

    max_seconds: float
    outlook: Callable[[], Outlook]
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    linger_seconds: float = LINGER_SECONDS
    _deadline: float = field(init=False)
    _last_activity: float = field(init=False)
    _busy_since: float | None = field(default=None, init=False)
    _stalled: int = field(default=0, init=False)
    _fewest_possible: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._last_activity = self.clock()
        self._deadline = self._last_activity + self.max_seconds

    def after(self, loop: Loop) -> Step:
        """Return what follows ``loop``."""
        now = self.clock()
        if now >= self._deadline:
            return Step(stop="budget")
        if loop.queued or loop.events:
            self._active(now)
            return Step()
        if loop.busy:
            self._busy_since = now if self._busy_since is None else self._busy_since
            if now - self._busy_since >= ANSWER_SECONDS:
                return Step(stop="unanswered")
            return self._wait(now, _POLL_SECONDS)
        self._busy_since = None
        return self._when_idle(now, loop, self.outlook())

    def _when_idle(self, now: float, loop: Loop, outlook: Outlook) -> Step:
        if outlook.moved:
            self._active(now)
            return Step()
        if outlook.possible and not self._is_stalled(outlook.possible):
            return Step()
        waits = []
        if loop.running:
            waits.append(self._last_activity + self.linger_seconds - now)
        if outlook.next_at is not None:
            until_next = outlook.next_at - self.wall()
            if until_next <= 0:
                return Step()
            if until_next <= HORIZON_SECONDS:
                waits.append(until_next)
        longest = max(waits, default=0.0)
        return self._wait(now, longest) if longest > 0 else Step(stop="idle")

    def _is_stalled(self, possible: int) -> bool:
        """Tell whether loops stopped reducing what seems possible: something we don't see blocks it."""
        if self._fewest_possible is None or possible < self._fewest_possible:
            self._fewest_possible, self._stalled = possible, 0
        else:
            self._stalled += 1
        return self._stalled >= STALLED_LOOPS

    def _active(self, now: float) -> None:
        self._last_activity = now
        self._busy_since = None
        self._fewest_possible, self._stalled = None, 0

    def _wait(self, now: float, seconds: float) -> Step:
        return Step(seconds=max(min(seconds, self._deadline - now), 0.0))

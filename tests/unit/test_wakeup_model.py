"""Can a wish for a scheduler run get lost, whoever dies when? Every interleaving of a small model is tried.

The model has the atomic steps of ``wakeup``, ``scheduler.holder``, ``scheduler.history`` and
``scheduler.tick``, each of which is one access to the state Dict, to Modal's input queue, to the database or
to its lock. Wakers commit work and then wake; one container does runs; ticks look and sleep. Any of them may
die before any of its steps, a bounded number of times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest

DEAD = "dead"
DONE = "done"


class State(NamedTuple):
    """A state of the world; immutable, so that states that were seen are recognised.

    :param work: of each waker: "none", "committed", "handled".
    :param marker: what ``history.marker`` would return.
    :param open: the last run on record has not ended: it is at work, or dead.
    :param note: the last tick's sleep holds while ``marker`` is this; None for no sleep.
    """

    wakers: tuple[str, ...]
    work: tuple[str, ...]
    wish: bool = False
    inputs: int = 0
    marker: int = 0
    open: bool = False
    note: int | None = None
    run: str = "none"
    run_saw: tuple[int, ...] = ()
    tick: str = "none"
    tick_marker: int = 0
    ticks_left: int = 0
    deaths_left: int = 0
    silent: bool = False
    """A waker died after it committed and before it put its wish: nobody knows but the database."""


def steps(state: State, run_opens: bool = True) -> Iterator[State]:
    """Yield what may happen next.

    :param run_opens: whether a run is on record from its beginning; if not, only its end is.
    """
    for index, at in enumerate(state.wakers):
        yield from _waker(state, index, at)
    yield from _run(state, run_opens)
    yield from _tick(state)


def _waker(state: State, index: int, at: str) -> Iterator[State]:
    def go(to: str, **changes: object) -> State:
        wakers = (*state.wakers[:index], to, *state.wakers[index + 1 :])
        return state._replace(wakers=wakers, **changes)

    if at in (DONE, DEAD):
        return
    if at == "begin":
        work = (*state.work[:index], "committed", *state.work[index + 1 :])
        yield go("put", work=work)
        return
    if state.deaths_left:
        unheard = state.work[index] == "committed" and at == "put"
        yield go(DEAD, deaths_left=state.deaths_left - 1, silent=state.silent or unheard)
    if at == "put":
        yield go(DONE) if state.wish else go("spawn", wish=True)
    elif at == "spawn":
        yield go(DONE, inputs=state.inputs + 1)


def _run(state: State, opens: bool) -> Iterator[State]:
    mark = state.marker + 1
    at = state.run
    if at == "none":
        if state.inputs:
            yield state._replace(inputs=state.inputs - 1, run="begin")
        return
    if state.deaths_left:
        yield state._replace(run="none", run_saw=(), deaths_left=state.deaths_left - 1)
    if at == "begin":
        yield state._replace(run="pop", marker=mark, open=True) if opens else state._replace(run="pop")
    elif at == "pop":
        yield state._replace(run="lock", wish=False)
    elif at == "lock":
        yield state._replace(run="read")
    elif at == "read":
        saw = tuple(index for index, work in enumerate(state.work) if work == "committed")
        yield state._replace(run="handle", run_saw=saw)
    elif at == "handle":
        work = tuple("handled" if index in state.run_saw else w for index, w in enumerate(state.work))
        yield state._replace(run="end", work=work, run_saw=())
    elif at == "end":
        yield state._replace(run="none", marker=mark, open=False)


def _tick(state: State) -> Iterator[State]:
    at = state.tick
    if at == "none":
        if state.ticks_left:
            yield state._replace(tick="wish", ticks_left=state.ticks_left - 1)
        return
    if state.deaths_left:
        yield state._replace(tick="none", deaths_left=state.deaths_left - 1)
    if at == "wish":
        yield state._replace(tick="look" if state.wish else "marker")
    elif at == "marker":
        noted = -1 if state.open else state.marker
        yield state._replace(tick="none" if asleep(state) else "database", tick_marker=noted)
    elif at == "look":
        # A wish waits. Young ones are left to their waker, unless the database says that something is due.
        yield state._replace(tick="database", tick_marker=-1)
        yield state._replace(tick="spawn")
    elif at == "database":
        due = "committed" in state.work
        if state.run in ("read", "handle", "end") and due:
            yield state._replace(tick="none")
        elif due:
            yield state._replace(tick="spawn")
        else:
            # A tick that saw a wish, or a run that has not ended, does not sleep.
            yield state._replace(tick="sleep" if state.tick_marker >= 0 else "none")
    elif at == "spawn":
        yield state._replace(tick="none", inputs=state.inputs + 1)
    elif at == "sleep":
        yield state._replace(tick="none", note=state.tick_marker)


def reachable(start: State, run_opens: bool = True) -> set[State]:
    """Return every state that can come about."""
    seen, ahead = {start}, deque([start])
    while ahead:
        for following in steps(ahead.popleft(), run_opens):
            if following not in seen:
                seen.add(following)
                ahead.append(following)
    return seen


def at_rest(state: State) -> bool:
    """Tell whether nothing is under way; ticks may still come."""
    return (
        state.run == "none"
        and state.tick == "none"
        and not state.inputs
        and all(at in (DONE, DEAD) for at in state.wakers)
    )


def lost(state: State) -> bool:
    """Tell whether work waits that the next tick would not find."""
    return at_rest(state) and "committed" in state.work and asleep(state)


def asleep(state: State) -> bool:
    """Tell whether a tick would leave the database alone."""
    return state.note is not None and state.note == state.marker and not state.open and not state.wish


def _world(wakers: int, *, ticks: int, deaths: int) -> State:
    return State(("begin",) * wakers, ("none",) * wakers, ticks_left=ticks, deaths_left=deaths)


@pytest.mark.parametrize("wakers", [1, 2, 3])
def test_without_deaths_and_without_ticks_everything_is_done(wakers: int) -> None:
    resting = [state for state in reachable(_world(wakers, ticks=0, deaths=0)) if at_rest(state)]
    assert resting
    for state in resting:
        assert set(state.work) == {"handled"}, state
        assert not state.wish, "a wish that nobody takes silences the next waker"


@pytest.mark.parametrize(("wakers", "ticks", "deaths"), [(2, 2, 1), (2, 1, 2), (3, 1, 1)])
def test_whoever_dies_the_next_tick_finds_what_is_left(wakers: int, ticks: int, deaths: int) -> None:
    states = reachable(_world(wakers, ticks=ticks, deaths=deaths))
    resting = [state for state in states if at_rest(state)]
    assert any(state.deaths_left == 0 for state in resting)
    assert any("committed" in state.work for state in resting), "deaths have no effect: the model is wrong"
    for state in resting:
        # Only a waker that nobody heard of, in a world that was asleep already, waits for the sleep's end.
        assert not lost(state) or state.silent, state


def test_a_tick_that_is_awake_repairs_whatever_was_left() -> None:
    for state in reachable(_world(2, ticks=1, deaths=2)):
        if not at_rest(state) or lost(state):
            continue
        after = reachable(state._replace(ticks_left=2, deaths_left=0))
        ends = [end for end in after if at_rest(end) and not end.ticks_left]
        assert ends
        # Of two ticks the first may be told that a wish is young.
        assert all("committed" not in end.work for end in ends), state


def test_the_model_finds_what_the_record_of_a_beginning_is_for() -> None:
    """Without it, a run that takes a wish and dies leaves nothing that would keep a tick from sleeping."""
    states = reachable(_world(2, ticks=2, deaths=1), run_opens=False)
    assert any(lost(state) and not state.silent for state in states)

"""How does anybody ask for a scheduler run, without a thousand asking at once?

The first one to put ``wake`` into the state Dict starts ``scheduler_run``; the others find it there and do
nothing. A run pops ``wake`` before it first reads the database, and whoever wakes has committed before, so
no wish is lost: it is either read by the run that is starting, or finds ``wake`` absent. ``scheduler_run``
has one container, so a run that is asked for while another one runs waits in Modal's own input queue.

A waker that can't start the run takes its ``wake`` back, so that asking again starts from nothing. One that
dies between the two steps leaves ``wake`` behind; the scheduled tick calls with ``force``, which renews it,
so that the next tick does not find it as old again.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import names

if TYPE_CHECKING:
    import modal

log = logging.getLogger(__name__)


def request_run(resources: names.ResourceNames, reason: str, *, force: bool = False) -> bool:
    """Ask for a scheduler run and return whether this call started one; may be repeated when it fails.

    :param reason: a few words for the run's log.
    :param force: start a run even if one was asked for already (the schedule's repair of a lost wake-up).
    :raises modal.exception.Error: Modal did not answer, or the environment is not deployed.
    """
    import modal

    state: modal.Dict = modal.Dict.from_name(resources.state_dict)
    ours = _put_wish(state, reason)
    if not (ours or force):
        return False
    if not ours:
        # Before the run starts: put after it was popped, it would silence everybody who wakes.
        found = state.get(names.WAKE_KEY) or _wish(reason)
        state.put(names.WAKE_KEY, {**found, "at": time.time()})
    try:
        modal.Function.from_name(resources.app, names.SCHEDULER_RUN).spawn(reason)
    except Exception:
        if ours:
            _take_back(state)
        raise
    return True


def take_wish(state: modal.Dict) -> dict[str, Any] | None:
    """Pop the pending wish: the first thing a run does, before it reads the database."""
    return state.pop(names.WAKE_KEY, None)


def _wish(reason: str) -> dict[str, Any]:
    return {"reason": reason, "at": time.time(), "token": str(uuid.uuid4())}


def _put_wish(state: modal.Dict, reason: str) -> bool:
    """Put a wish if there is none, and return whether the one there is ours."""
    note = _wish(reason)
    if state.put(names.WAKE_KEY, note, skip_if_exists=True):
        return True
    # The SDK repeats a put whose answer was lost, and the repetition finds what the first attempt put.
    found = state.get(names.WAKE_KEY)
    return found is not None and found.get("token") == note["token"]


def _take_back(state: modal.Dict) -> None:
    """Remove our wish; it may be another one's by now, whose run starts all the same."""
    try:
        take_wish(state)
    except Exception as error:
        log.warning(
            "the wake-up could not be taken back: %s: %s; the schedule starts a run",
            type(error).__name__,
            error,
        )

"""How does anybody ask for a scheduler run, without a thousand asking at once?

The first one to put ``wake`` into the state Dict starts ``scheduler_run``; the others find it there and do
nothing. A run pops ``wake`` before it first reads the database, and whoever wakes has committed before, so
no wish is lost: it is either read by the run that is starting, or finds ``wake`` absent. ``scheduler_run``
has one container, so a run that is asked for while another one runs waits in Modal's own input queue.
A waker that dies between the two steps leaves ``wake`` behind; the scheduled tick calls with ``force``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import names

if TYPE_CHECKING:
    import modal


def _note(reason: str) -> dict[str, Any]:
    return {"reason": reason, "at": time.time()}


def request_run(resources: names.ResourceNames, reason: str, *, force: bool = False) -> bool:
    """Ask for a scheduler run and return whether this call started one.

    :param reason: a few words for the run's log.
    :param force: start a run even if one was asked for already (the schedule's repair of a lost wake-up).
    :raises modal.exception.Error: Modal did not answer, or the environment is not deployed.
    """
    import modal

    state: modal.Dict = modal.Dict.from_name(resources.state_dict)
    first = state.put(names.WAKE_KEY, _note(reason), skip_if_exists=True)
    if not (first or force):
        return False
    modal.Function.from_name(resources.app, names.SCHEDULER_RUN).spawn(reason)
    return True


def take_wish(state: modal.Dict) -> dict[str, Any] | None:
    """Pop the pending wish: the first thing a run does once it holds the lock."""
    return state.pop(names.WAKE_KEY, None)

"""What does the dispatcher tell the executor?

Reports are made on the dispatcher's thread and read on the scheduler's, in order; they are immutable.
"""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_modal.executors.starts import Starts
from airflow_provider_modal.wire import Completion, Kind, Outcome


@dataclass(frozen=True)
class Report:
    """Something became known about a dispatch."""

    dispatch: str


@dataclass(frozen=True)
class Submitted(Report):
    """Modal has the function call (also: it was found for a dispatch that came without its call's id).

    :param doubtful: an earlier attempt may have started another function call of the same dispatch.
    """

    call_id: str
    doubtful: bool = False


@dataclass(frozen=True)
class NotSubmitted(Report):
    """Modal will not get this function call; ``reason`` is for the user.

    :param doubtful: an attempt may have started it all the same; only its answer is missing.
    """

    reason: str
    doubtful: bool = False


@dataclass(frozen=True)
class Ended(Report):
    """The function call is over; ``reason`` is set when ``outcome`` is ``failed``.

    :param kind: what it ran, as far as the worker told.
    :param by_worker: the worker said so, and wrote the reason into the task's log.
    :param lost_container: the container that had the call before; see ``wire.Completion``.
    """

    outcome: Outcome
    reason: str | None = None
    kind: Kind = "task"
    by_worker: bool = True
    lost_container: str | None = None

    @classmethod
    def told(cls, completion: Completion) -> Ended:
        """Return what a worker told."""
        return cls(
            completion.dispatch,
            completion.outcome,
            completion.reason,
            completion.kind,
            lost_container=completion.lost_container,
        )


@dataclass(frozen=True)
class Alive(Report):
    """Asked for: there is no result, and Modal still has the call waiting or running."""


@dataclass(frozen=True)
class Waiting(Report):
    """Asked for: Modal has the call, and no container has taken it yet.

    :param starts: what is known about the function's containers; None if its name is not.
    """

    starts: Starts | None = None


@dataclass(frozen=True)
class NotStarted(Report):
    """Nothing of it ran, and nothing of it will: the call failed or was taken back, for a ``reason``."""

    reason: str


@dataclass(frozen=True)
class Unknown(Report):
    """Asked for: Modal has no such call, or none was ever noted for this dispatch.

    :param lost: Modal had taken a function call. Otherwise Modal refused it, or was never asked, until the
        scheduler ended: that says nothing about the task.
    """

    reason: str
    lost: bool = True


@dataclass(frozen=True)
class Unanswered(Report):
    """Asked for, but Modal did not answer; to be asked again later."""


@dataclass(frozen=True)
class Malformed:
    """Something in the event Queue is no completion; it was dropped.

    :param problem: what is wrong with it.
    """

    problem: str


@dataclass(frozen=True)
class Cancelled(Report):
    """A function call that was to be cancelled is over; nothing is left to do about it."""

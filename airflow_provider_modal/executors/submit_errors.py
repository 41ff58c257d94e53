"""A call to Modal failed: may it be repeated, and what is the user told?

The one place that reads the SDK's exceptions for the executor. Repeatable is what says nothing about the
call itself: Modal not reachable, out of capacity or rate, no answer in time.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from airflow_provider_modal import modal_errors
from airflow_provider_modal.errors import ModalflowError, UnreachableError
from airflow_provider_modal.names import ResourceNames

BACKOFF_FIRST = 0.5
BACKOFF_MOST = 20.0
"""Seconds between attempts, before jitter; doubled from the first to the most."""
HINT_MOST = 120.0
"""Seconds that a server's wish to be left alone may delay an attempt."""


@dataclass(frozen=True)
class Verdict:
    """What a failed call to Modal means.

    :param retry: the same call may succeed later.
    :param reason: what happened and what to do, for the user.
    :param wait: seconds that the server asked for before the next attempt.
    :param ambiguous: the call may have had its effect, only the answer is missing.
    :param pressure: Modal answered, and takes no more at the moment: waiting is all there is to do.
    """

    retry: bool
    reason: str
    wait: float | None = None
    ambiguous: bool = False
    pressure: bool = False


def classify(error: Exception, resources: ResourceNames) -> Verdict:
    """Return what a failed call to Modal means for the submission of a task."""
    from modal import exception

    text = _text(error)
    if isinstance(error, UnreachableError):
        return Verdict(True, text)
    if isinstance(error, ModalflowError):
        return Verdict(False, text)
    if isinstance(error, exception.NotFoundError):
        return Verdict(
            False,
            f"environment {resources.env!r} is not deployed in Modal, or not by this release ({text}); run: "
            f"modalflow create --env {resources.env}",
        )
    if isinstance(error, exception.AuthError):
        return Verdict(
            False,
            f"Modal does not accept the scheduler's token ({text}); {modal_errors.NEW_TOKEN}, or correct the "
            "connection that [modal] connection_id names",
        )
    if isinstance(error, exception.PermissionDeniedError):
        return Verdict(False, f"the scheduler's Modal token lacks the permission to start tasks ({text})")
    if isinstance(error, exception.RequestSizeError | exception.SerializationError):
        return Verdict(
            False, f"the task call can't be sent to Modal ({text}); make the task's inputs smaller"
        )
    if isinstance(error, exception.ResourceExhaustedError):
        return Verdict(
            True,
            f"Modal is at a limit of the workspace ({text}); lower parallelism or raise the limit",
            _server_hint(error),
            pressure=True,
        )
    if "input queue seems to be full" in text:
        # A bare Exception in the SDK: the function has as many inputs waiting as Modal keeps.
        return Verdict(True, f"the function's backlog at Modal is full ({text})", pressure=True)
    # InternalFailure and ClientClosed say that the SDK's side of a connection broke; a new attempt makes
    # a new one.
    if isinstance(
        error, (*modal_errors.passing_errors(), exception.InternalFailure, exception.ClientClosed, OSError)
    ):
        # Refused and not connected are the only failures that are sure to come before any effect.
        ambiguous = not isinstance(error, exception.ConnectionError | ConnectionRefusedError)
        return Verdict(True, f"Modal does not answer ({text})", _server_hint(error), ambiguous)
    return Verdict(False, f"Modal refused the task call ({text}); the scheduler's log has more")


def backoff(attempt: int, wait: float | None = None) -> float:
    """Return how many seconds to wait after failed attempt number ``attempt`` (from 1), with jitter.

    :param wait: the server's own wish; the result is never less.
    """
    most = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(attempt - 1, 16))
    # Half fixed, half random: schedulers that lost Modal at the same moment don't return as one crowd.
    delay = most / 2 + random.uniform(0, most / 2)
    return max(delay, min(wait, HINT_MOST) + random.uniform(0, 1)) if wait else delay


def _server_hint(error: Exception) -> float | None:
    """Return ``retry_after_secs`` of the RPCRetryPolicy that Modal's server attaches to some errors."""
    # The public property warns about its end; without it there is no hint, and the back-off decides.
    for detail in getattr(error, "_grpc_details", None) or ():
        seconds = getattr(detail, "retry_after_secs", None)
        if isinstance(seconds, int | float) and seconds > 0:
            return float(seconds)
    return None


def _text(error: Exception) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    return str(error).strip() or type(error).__name__

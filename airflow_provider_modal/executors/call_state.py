"""What became of a function call, in Modal's words and with what to do?"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_modal import wire
from airflow_provider_modal.modal_errors import passing_errors

if TYPE_CHECKING:
    import modal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CallState:
    """What Modal says about a function call.

    :param over: there is an outcome, or there will never be one.
    :param completion: what the worker returned.
    :param failure: why there is no completion although the call is over; for the user.
    :param known: False when Modal has no such call.
    :param unstarted: the failure is none of the function itself, which lets no exception out: if no container
        has claimed the dispatch, nothing of it ran.
    :param cancelled: it was cancelled, by whomever.
    """

    over: bool
    completion: wire.Completion | None = None
    failure: str | None = None
    known: bool = True
    unstarted: bool = False
    cancelled: bool = False


async def state_of(call_id: str, client: modal.Client | None = None) -> CallState:
    """Ask Modal what became of a function call.

    :param client: to ask with; by default the SDK's own.
    :raises Exception: Modal did not answer.
    """
    import modal
    from modal import exception

    call: modal.FunctionCall[Any] = modal.FunctionCall.from_id(call_id, client=client)
    try:
        value = await call.get.aio(timeout=0)
    except TimeoutError as error:
        if error.args:
            return _failed(error)
        # The SDK's bare TimeoutError: no output yet.
        return CallState(over=False)
    except exception.OutputExpiredError:
        return CallState(
            over=True,
            failure=f"Modal no longer has the result of function call {call_id} (it keeps them for 7 days); "
            "clear the task to run it again",
        )
    except exception.NotFoundError as error:
        log.info("Modal does not know function call %s: %s", call_id, error)
        return CallState(over=True, known=False)
    except exception.InputCancellation:
        return _cancelled(call_id)
    except exception.FunctionTimeoutError as error:
        return CallState(
            over=True,
            failure=f"Modal ended function call {call_id} at its time limit ({error}); raise the worker "
            "profile's timeout in the configuration and run: modalflow create",
        )
    except exception.RemoteError as error:
        text = str(error).strip()
        if not text or "cancel" in text.lower() or "terminat" in text.lower():
            return _cancelled(call_id, text)
        return _failed(error)
    except (*passing_errors(), exception.AuthError, exception.ClientClosed, OSError):
        raise
    except Exception as error:
        return _failed(error)
    try:
        return CallState(over=True, completion=wire.Completion.from_wire(value))
    except wire.WireError as error:
        return CallState(over=True, failure=str(error))


def _cancelled(call_id: str, text: str = "") -> CallState:
    detail = f" ({text})" if text else ""
    return CallState(
        over=True,
        failure=f"function call {call_id} was cancelled in Modal{detail}; clear the task to run it again",
        cancelled=True,
    )


def _failed(error: BaseException) -> CallState:
    cause = ": ".join(filter(None, [type(error).__name__, str(error).strip()]))
    return CallState(
        over=True,
        failure=f"the task's function call failed in Modal ({cause}); {_advice(cause)}",
        unstarted=True,
    )


_ADVICE = (
    (
        re.compile(r"\bImportError|ModuleNotFoundError|No module named"),
        "the container's code could not be imported: add what is missing to image.pip in config.yaml, then: "
        "modalflow create",
    ),
    (
        re.compile(r"\bimage\b", re.IGNORECASE),
        "the containers' image can't be used: look at image in config.yaml, then: modalflow create",
    ),
    (
        re.compile(r"out of memory|\bOOM|exit code 137", re.IGNORECASE),
        "set executor_config={'modal': {'memory': more MiB}}, or raise the worker profile's memory in "
        "config.yaml and run: modalflow create",
    ),
)
"""What to do, by what Modal's words for it have in them; its words are no interface, so this only helps."""


def _advice(cause: str) -> str:
    return advice(cause) or "look at the App's logs there, then clear the task"


def advice(cause: str) -> str | None:
    """Return what to do about a failure of a function's containers, by its words, if they tell any."""
    for words, known in _ADVICE:
        if words.search(cause):
            return known
    return None

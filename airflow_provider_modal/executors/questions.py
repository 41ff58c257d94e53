"""What became of a dispatch that nothing was heard of?"""

from __future__ import annotations

from dataclasses import dataclass, field

from airflow_provider_modal import wire
from airflow_provider_modal.executors import reports
from airflow_provider_modal.executors.call_state import CallState
from airflow_provider_modal.executors.function_options import FunctionOptions
from airflow_provider_modal.executors.gateway import Gateway


@dataclass(frozen=True)
class Question:
    """An order to find out about a dispatch.

    :param call_id: its function call, if it is known; else it is looked up and reported.
    :param modal: ask Modal about the call if the worker left no result; if not, it counts as alive then.
    :param function: name of the function that was called, if it is known.
    :param options: what of the function the task wanted otherwise.
    """

    dispatch: str
    call_id: str | None
    modal: bool = True
    function: str | None = None
    options: FunctionOptions = field(default_factory=FunctionOptions)


async def answers(gateway: Gateway, question: Question) -> list[reports.Report]:
    """Find out what became of a dispatch.

    Modal's word on the call comes first where it is asked at all: in most cases it is the only question. The
    result that the worker left counts more than a failure of the call, whose container may have been lost
    after it had reported.

    :raises Exception: Modal did not answer.
    """
    dispatch, call_id = question.dispatch, question.call_id
    found: list[reports.Report] = []
    if call_id is None:
        call_id = await gateway.noted_call(dispatch)
        if call_id is None:
            return [await _without_call(gateway, dispatch)]
        found.append(reports.Submitted(dispatch, call_id))
    state = await gateway.state_of(call_id) if question.modal else CallState(over=False)
    if state.completion is not None and state.completion.outcome != "obsolete":
        return [*found, ended(state.completion)]
    try:
        taken = question.modal and await gateway.claim(dispatch) is not None
        if question.modal and not state.over and not taken:
            # No container has begun with it, so there is no result either.
            return [*found, await _waiting(gateway, question)]
        result = await gateway.result(dispatch)
    except wire.WireError as error:
        return [*found, reports.Ended(dispatch, "failed", str(error), by_worker=False)]
    if result is not None:
        return [*found, ended(result)]
    if state.completion is not None:
        return [*found, ended(state.completion)]
    if not state.over:
        return [*found, reports.Alive(dispatch)]
    if not state.known:
        return [*found, reports.Unknown(dispatch, f"Modal has no function call {call_id}")]
    if state.unstarted and not taken:
        return [*found, reports.NotStarted(dispatch, str(state.failure))]
    if state.cancelled and not taken:
        why = await gateway.noted_cancel(dispatch)
        if why is not None:
            # Taken back by an executor that could not see it through.
            return [*found, reports.NotStarted(dispatch, why)]
    return [*found, reports.Ended(dispatch, "failed", state.failure, by_worker=False)]


def ended(completion: wire.Completion) -> reports.Report:
    """Return the report of what a worker told."""
    if completion.outcome == "not_started":
        return reports.NotStarted(completion.dispatch, str(completion.reason))
    return reports.Ended.told(completion)


async def _without_call(gateway: Gateway, dispatch: str) -> reports.Report:
    try:
        result = await gateway.result(dispatch)
    except wire.WireError as error:
        return reports.Ended(dispatch, "failed", str(error), by_worker=False)
    if result is not None:
        return ended(result)
    return reports.Unknown(dispatch, "it never reached Modal", lost=False)


async def _waiting(gateway: Gateway, question: Question) -> reports.Waiting:
    if question.function is None:
        return reports.Waiting(question.dispatch)
    return reports.Waiting(question.dispatch, await gateway.starts(question.function, question.options))

"""What became of a dispatch that nothing was heard of?"""

from __future__ import annotations

from airflow_provider_modal import wire
from airflow_provider_modal.executors import reports
from airflow_provider_modal.executors.gateway import Gateway


async def answers(
    gateway: Gateway, dispatch: str, call_id: str | None, *, ask_modal: bool
) -> list[reports.Report]:
    """Find out, from the cheapest source to the surest: the result that the worker left, the function call.

    :param call_id: the dispatch's function call, if it is known; else it is looked up and reported.
    :param ask_modal: ask Modal about the call if there is no result; if not, it counts as alive then.
    :raises Exception: Modal did not answer.
    """
    try:
        result = await gateway.result(dispatch)
    except wire.WireError as error:
        return [reports.Ended(dispatch, "failed", str(error), by_worker=False)]
    if result is not None:
        return [reports.Ended.told(result)]
    found: list[reports.Report] = []
    if call_id is None:
        call_id = await gateway.noted_call(dispatch)
        if call_id is None:
            return [reports.Unknown(dispatch, "it never reached Modal", lost=False)]
        found.append(reports.Submitted(dispatch, call_id))
    if not ask_modal:
        return [*found, reports.Alive(dispatch)]
    state = await gateway.state_of(call_id)
    if not state.over:
        return [*found, reports.Alive(dispatch)]
    if not state.known:
        return [*found, reports.Unknown(dispatch, f"Modal has no function call {call_id}")]
    if state.completion is not None:
        return [*found, reports.Ended.told(state.completion)]
    return [*found, reports.Ended(dispatch, "failed", state.failure, by_worker=False)]

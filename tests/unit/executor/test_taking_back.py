"""What becomes of calls that are taken back from Modal, and of those whose taking back is cut short?"""

from __future__ import annotations

import asyncio

import pytest

from airflow_provider_modal import wire
from airflow_provider_modal.executors import cancelling, reports
from airflow_provider_modal.executors.call_state import CallState
from airflow_provider_modal.executors.cancelling import Cancelling
from airflow_provider_modal.executors.questions import Question, answers

CANCELLED = CallState(over=True, failure="function call fc-1 was cancelled in Modal", cancelled=True)


class Calls:
    """A Modal on which each request is counted while it lasts, and the last look at claims may fail."""

    def __init__(self) -> None:
        self.noted: dict[str, str] = {}
        self.claims: dict[str, wire.Claim] = {}
        self.cancelled: set[str] = set()
        self.under_way = self.most = 0
        self.cut_short = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def _request(self) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        await self.answers.wait()
        self.under_way -= 1

    async def claim(self, dispatch: str) -> wire.Claim | None:
        await self._request()
        if self.cut_short and self.cancelled:
            raise asyncio.TimeoutError
        return self.claims.get(dispatch)

    async def note_cancel(self, dispatch: str, why: str) -> None:
        await self._request()
        self.noted[dispatch] = why

    async def noted_cancel(self, dispatch: str) -> str | None:
        return self.noted.get(dispatch)

    async def cancel(self, call_id: str, terminate: bool = False) -> None:
        await self._request()
        self.cancelled.add(call_id)

    async def state_of(self, call_id: str) -> CallState:
        await self._request()
        return CANCELLED if call_id in self.cancelled else CallState(over=False)

    async def result(self, dispatch: str) -> None:
        return None


def test_what_is_taken_back_is_not_started_although_nobody_saw_it_through() -> None:
    async def story() -> list[reports.Report]:
        modal, told = Calls(), []
        modal.cut_short = True
        await Cancelling(modal, told.append).take_back("d1", "fc-1", "no container")  # type: ignore[arg-type]
        modal.cut_short = False
        return [*told, *await answers(modal, Question("d1", "fc-1"))]  # type: ignore[arg-type]

    assert asyncio.run(story()) == [reports.Unanswered("d1"), reports.NotStarted("d1", "no container")]


@pytest.mark.parametrize("claimed", [False, True])
def test_a_call_that_people_cancel_or_that_was_taken_fails(claimed: bool) -> None:
    async def story() -> list[reports.Report]:
        modal = Calls()
        modal.cancelled.add("fc-1")
        if claimed:
            modal.noted["d1"] = "no container"
            modal.claims["d1"] = wire.Claim("token", "started", "ta-1", at=1.0)
        return await answers(modal, Question("d1", "fc-1"))  # type: ignore[arg-type]

    [report] = asyncio.run(story())
    assert isinstance(report, reports.Ended) and "was cancelled in Modal" in str(report.reason)


def test_thousands_are_taken_back_a_few_at_a_time_and_the_end_waits_for_them() -> None:
    dispatches = {f"d{number}" for number in range(10 * cancelling.AT_ONCE)}

    async def story() -> None:
        modal, told = Calls(), list[reports.Report]()
        modal.answers.clear()
        orders = Cancelling(modal, told.append)  # type: ignore[arg-type]
        work = [
            asyncio.create_task(orders.take_back(dispatch, f"fc-{dispatch}", "no container"))
            for dispatch in dispatches
        ]
        while modal.under_way < cancelling.AT_ONCE:
            await asyncio.sleep(0)
        assert orders.urgent
        modal.answers.set()
        await asyncio.gather(*work)
        assert not orders.urgent
        assert modal.most == cancelling.AT_ONCE
        assert {report.dispatch for report in told if isinstance(report, reports.NotStarted)} == dispatches

    asyncio.run(story())

"""How is a function call ended that nobody wants any more?

In two steps: the call is cancelled, which lets the worker stop its task well; if it is still there after a
grace, its container is ended. The second step is needed because Modal's runtime loses a cancellation that
arrives while an input is being started. A scheduler that ends between the two leaves the second one to the
next, which finds the cancellation in Airflow's event log (see ``database.open_cancellations``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from airflow_provider_modal.executors import reports
from airflow_provider_modal.executors.gateway import Gateway
from airflow_provider_modal.executors.submit_errors import backoff, classify

log = logging.getLogger(__name__)

GRACE = 40.0
"""Seconds that a cancelled call may take to end (the worker's own grace is 30) before its container is."""
FIRST_LOOK, LAST_LOOK = 0.2, 5.0
"""Seconds between two looks whether a cancelled call is over: doubled from the first to the last."""
ATTEMPTS = 5
AT_ONCE = 16
"""How many calls are dealt with at a time; thousands may have to be taken back together."""


class Cancelling:
    """Ends function calls; used on the dispatcher's loop only.

    :param report: takes ``Cancelled`` once a call is known to be over.
    """

    def __init__(self, gateway: Gateway, report: Callable[[reports.Report], None]) -> None:
        self._gateway = gateway
        self._report = report
        self._urgent: set[str] = set()
        # Held while Modal is called, and not while a grace passes.
        self._slots = asyncio.Semaphore(AT_ONCE)

    @property
    def urgent(self) -> bool:
        """Whether something is on its way to Modal; waiting for a grace to pass is not."""
        return bool(self._urgent)

    async def end(self, dispatch: str, call_id: str | None, why: str) -> None:
        """Cancel a dispatch's function call and see to it that it ends.

        :param call_id: the call, if it is known; else it is looked up.
        :param why: for the worker, which writes it into the task's log.
        """
        self._urgent.add(dispatch)
        try:
            call_id = await self._cancelled(dispatch, call_id, why)
        finally:
            self._urgent.discard(dispatch)
        if call_id is not None:
            await self.finish(dispatch, call_id, GRACE)

    async def take_back(self, dispatch: str, call_id: str, why: str) -> None:
        """Have a call that waits for a container never start; reports ``NotStarted`` once that is sure.

        ``Alive`` if a container has taken it meanwhile: it ends as it ends. ``Unanswered`` if nothing is
        sure.

        :param why: for the user.
        """
        self._urgent.add(dispatch)
        try:
            if await self._taken_back(dispatch, call_id, why):
                self._report(reports.NotStarted(dispatch, why))
            else:
                self._report(reports.Alive(dispatch))
        except Exception as error:
            # The note stays: whoever finds the call cancelled finds why.
            reason = str(error) or type(error).__name__
            log.warning("function call %s is not taken back from Modal yet: %s", call_id, reason)
            self._report(reports.Unanswered(dispatch))
        finally:
            self._urgent.discard(dispatch)

    async def _taken_back(self, dispatch: str, call_id: str, why: str) -> bool:
        """Cancel a call that waits for a container; return False if one has taken it."""
        async with self._slots:
            if await self._gateway.claim(dispatch) is not None:
                return False
            await self._gateway.note_cancel(dispatch, why)
            await self._gateway.cancel(call_id)
        await self._until_over(call_id)
        async with self._slots:
            return await self._gateway.claim(dispatch) is None

    async def _until_over(self, call_id: str) -> None:
        """Wait until a cancelled call is over.

        :raises TimeoutError: it goes on.
        """
        ends = time.monotonic() + GRACE
        pause = FIRST_LOOK
        while not await self._is_over(call_id):
            if time.monotonic() > ends:
                raise TimeoutError(f"it goes on {GRACE:.0f} s after its cancellation")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_LOOK)

    async def _is_over(self, call_id: str) -> bool:
        async with self._slots:
            return (await self._gateway.state_of(call_id)).over

    async def finish(self, dispatch: str, call_id: str | None, seconds: float) -> None:
        """End the container of a call that is still there after ``seconds``."""
        await asyncio.sleep(seconds)
        self._urgent.add(dispatch)
        try:
            async with self._slots:
                call_id = call_id or await self._gateway.noted_call(dispatch)
                if call_id is not None and not (await self._gateway.state_of(call_id)).over:
                    log.warning(
                        "function call %s goes on after its cancellation; its container is ended", call_id
                    )
                    await self._gateway.cancel(call_id, terminate=True)
            self._report(reports.Cancelled(dispatch))
        except Exception as error:
            log.warning(
                "can't tell whether function call %s ended after its cancellation: %s",
                call_id,
                str(error) or type(error).__name__,
            )
        finally:
            self._urgent.discard(dispatch)

    async def _cancelled(self, dispatch: str, call_id: str | None, why: str) -> str | None:
        """Cancel a function call and return its id; None if it is not known or can't be cancelled."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with self._slots:
                    call_id = call_id or await self._gateway.noted_call(dispatch)
                    if call_id is None:
                        self._report(reports.Cancelled(dispatch))
                        return None
                    # First: the worker looks for it as soon as it notices the cancellation.
                    await self._gateway.note_cancel(dispatch, why)
                    await self._gateway.cancel(call_id)
                    return call_id
            except Exception as error:
                verdict = classify(error, self._gateway.resources)
                log.warning(
                    "function call %s of dispatch %s is not cancelled (attempt %d of %d): %s",
                    call_id,
                    dispatch,
                    attempt,
                    ATTEMPTS,
                    verdict.reason,
                )
                if not verdict.retry:
                    break
                await asyncio.sleep(backoff(attempt, verdict.wait))
        return None

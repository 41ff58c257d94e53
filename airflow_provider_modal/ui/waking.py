"""How does what somebody does in Airflow's UI, or through its API, reach a scheduler that is not running?

By a middleware around Airflow's app: whatever changed something asks for a scheduler run, once the app is
done with the request, which is after its transaction was committed. What is lost here is found by the
schedule.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_INTERFACES = ("/api/", "/ui/")
"""Where Airflow 3 changes things; logging in is elsewhere."""
_QUESTIONS = ("/list",)
"""Ends of paths whose POST only asks."""


class WakesScheduler:
    """An ASGI app around Airflow's.

    :param app: Airflow's app.
    :param wake: asks for a scheduler run, with a few words why; called in a thread, may raise.
    """

    def __init__(self, app: App, wake: Callable[[str], object]) -> None:
        self._app = app
        self._wake = wake

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if not _may_change(scope):
            await self._app(scope, receive, send)
            return
        refused = False

        async def watched(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = message["status"] >= 400
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            # Also for a client that went away before it had its answer.
            if not refused:
                await self._ask(f"{scope['method']} {scope['path']}")

    async def _ask(self, reason: str) -> None:
        try:
            await asyncio.to_thread(self._wake, reason)
        except Exception as error:
            log.warning(
                "the scheduler could not be woken: %s: %s; its schedule finds the change",
                type(error).__name__,
                error,
            )


def _may_change(scope: MutableMapping[str, Any]) -> bool:
    if scope["type"] != "http" or scope["method"] not in _CHANGING:
        return False
    path = scope["path"].removeprefix(scope.get("root_path") or "")
    return path.startswith(_INTERFACES) and not path.endswith(_QUESTIONS)

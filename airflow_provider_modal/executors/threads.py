"""How does an event loop run something that blocks, without waiting for it when it ends?

The threads of ``asyncio.to_thread`` are joined when the loop ends and again when the process does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def on_daemon_thread(work: Callable[[], T], name: str) -> T:
    """Return what ``work`` returns on a thread of its own; a caller that is cancelled abandons it.

    :param name: of the thread.
    :raises Exception: what ``work`` raises.
    """
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    # Running futures can't be cancelled: the thread would be surprised by a cancelled one.
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(outcome)

"""How does something go on beside a block of code, and end with it?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def beside(
    name: str, work: Callable[[threading.Event], None], *, wait: float | None = None
) -> Iterator[None]:
    """Run ``work`` on a daemon thread while the block runs.

    :param name: of the thread.
    :param work: is given what is set when the block is over, and returns soon after that.
    :param wait: seconds to wait for its return; without a bound by default.
    """
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(wait)

"""How is told what becomes of the steps of a ``create`` or ``destroy``?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from airflow_provider_modal.errors import ModalflowError

Status = Literal[
    "started", "waiting", "created", "updated", "unchanged", "deleted", "absent", "kept", "failed"
]
Progress = Callable[[str, str, "str | None"], None]
"""Called with a step's name, its ``Status`` and a detail to show; never with a secret value. ``waiting``
does not end a step; the detail says for what."""


class Steps:
    """Reports each step's beginning and end, and keeps the results.

    :param done: status by step; filled in.
    """

    def __init__(self, progress: Progress | None, done: dict[str, str]) -> None:
        self._progress = progress or (lambda step, status, detail: None)
        self._done = done

    @contextmanager
    def __call__(self, step: str) -> Iterator[Callable[..., None]]:
        """Begin a step; the block is given a function to report its status and a detail with."""

        def report(status: Status, detail: str | None = None) -> None:
            self._done[step] = status
            self._progress(step, status, detail)

        report("started")
        try:
            yield report
        except BaseException as error:
            interrupted = not isinstance(error, ModalflowError)
            report("failed", type(error).__name__ if interrupted else str(error))
            raise

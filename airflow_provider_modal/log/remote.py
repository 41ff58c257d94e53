"""How does Airflow 3 read the logs of tasks on Modal: Airflow's interface to logs that are elsewhere.

Reading is ours; nothing of a task is uploaded here, because a worker ships its task's log while it runs. The
one exception is a trigger that an Airflow outside Modal ran for a task of ours. Logs of other executors'
tasks are left to what else the deployment has set up, or to Airflow's local files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from datetime import datetime
from itertools import chain
from typing import Any

from airflow_provider_modal.errors import ModalflowError

_NUMBER = re.compile(r"attempt=(\d+)\.log")
Stream = tuple[list[str], list[Generator[str, None, None]]]


class VolumeLogIO:
    """Airflow's ``RemoteLogIO`` and ``RemoteLogStreamIO``; makes no call and imports no SDK when it is made.

    :param other: what reads and writes the logs of tasks that are not ours, if anything does.
    """

    def __init__(self, other: Any = None) -> None:
        self._other = other

    @classmethod
    def from_config(cls) -> VolumeLogIO:
        """Return one for an Airflow that finds it by the scheme ``modal://`` of its remote log folder."""
        return cls()

    @property
    def processors(self) -> tuple[Any, ...]:
        """What structlog does to each line of a task's log."""
        return tuple(self._other.processors) if self._other is not None else ()

    def upload(self, path: os.PathLike[str] | str, ti: Any = None) -> None:
        """Take a log that is complete.

        :param path: below Airflow's ``base_log_folder``.
        """
        if self._other is not None:
            self._other.upload(path, ti)
        path = os.fspath(path)
        if ti is None or ".trigger." not in path:
            return
        from airflow_provider_modal.log import trigger_uploads

        trigger_uploads.offer(path, ti)

    def read(self, relative_path: str, ti: Any) -> tuple[list[str], list[str] | None]:
        """Return where a log is, and its last lines: Airflow asks for ``stream`` where it knows it."""
        from airflow_provider_modal.executors import task_log

        owner = _owner(ti)
        if owner is None:
            return self._other.read(relative_path, ti) if self._other is not None else ([], None)
        key, call_id = task_log.key_of(ti, _try_number(relative_path, ti))
        try:
            answer = task_log.logs_of(owner).read(key, call_id)
        except ModalflowError as error:
            return _problem(error), None
        return answer.sources, ["\n".join(answer.lines)] if answer.lines else None

    def stream(self, relative_path: str, ti: Any) -> Stream:
        """Return where a log is, and its lines: of a task that runs the last ones, of any other all.

        Airflow's own rule leaves a task that has ended to its local files if there are no lines.
        """
        owner = _owner(ti)
        if owner is None:
            return self._others(relative_path, ti)
        from airflow_provider_modal.executors import task_log

        key, call_id = task_log.key_of(ti, _try_number(relative_path, ti))
        try:
            logs = task_log.logs_of(owner)
        except ModalflowError as error:
            return _problem(error), []
        if _state(ti) == "running":
            answer = logs.read(key, call_id)
            return answer.sources, [_generator(iter(answer.lines))]
        sources, lines = logs.stream(key, call_id, _state(ti), _ended_at(ti))
        if lines is None:
            # Of before the Volume, or of a worker that was told to upload elsewhere.
            of_others, streams = self._others(relative_path, ti)
            return [*sources, *of_others], streams
        return sources, [_generator(lines)]

    def _others(self, relative_path: str, ti: Any) -> Stream:
        if self._other is None:
            return [], []
        if hasattr(self._other, "stream"):
            sources, streams = self._other.stream(relative_path, ti)
            return sources, streams or []
        sources, texts = self._other.read(relative_path, ti)
        lines = chain.from_iterable(text.splitlines() for text in texts or ())
        return sources, [_generator(lines)] if texts else []


def reads_logs() -> bool:
    """Return whether this process's Airflow reads tasks' logs by a ``VolumeLogIO``."""
    from airflow import logging_config

    if hasattr(logging_config, "get_remote_task_log"):
        return isinstance(logging_config.get_remote_task_log(), VolumeLogIO)
    return isinstance(getattr(logging_config, "REMOTE_TASK_LOG", None), VolumeLogIO)


def _owner(ti: Any) -> Any:
    from airflow_provider_modal.executors.owner import owner_of

    return owner_of(ti)


def _try_number(relative_path: str, ti: Any) -> int:
    """Return the try whose log is asked for: the path says it if it is Airflow's own."""
    match = _NUMBER.fullmatch(os.path.basename(relative_path))
    return int(match[1]) if match else ti.try_number


def _state(ti: Any) -> str | None:
    return None if ti.state is None else str(getattr(ti.state, "value", ti.state))


def _ended_at(ti: Any) -> float | None:
    end: datetime | None = ti.end_date
    return end.timestamp() if end is not None else None


def _problem(error: ModalflowError) -> list[str]:
    return [f"The log of this task on Modal can't be looked for: {error}"]


def _generator(lines: Iterator[str]) -> Generator[str, None, None]:
    # Airflow takes no other kind of iterator.
    yield from lines

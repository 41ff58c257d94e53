"""How does what a trigger wrote get into the log of a task on Modal, if an Airflow elsewhere ran the trigger?

Airflow gives its triggerer's logs to the remote logging once a trigger has ended. Those of tasks whose try
has a log on the Volume go there, beside it: Airflow does not look at local files of a finished task whose log
is elsewhere. All others stay where they are. The triggerer does not wait for Modal.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import re
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

from airflow_provider_modal import wire
from airflow_provider_modal.log import attempt, segments

log = logging.getLogger(__name__)

MOST_WAITING = 200
MOST_BYTES = 1024 * 1024
"""Of a trigger's log; of a longer one the end."""
END_SECONDS = 5.0
"""How long a triggerer that ends waits for what is on its way."""
_TRIGGER_LOG = re.compile(r".+\.trigger\.(?P<job>[^./]+)\.log")

_waiting: queue.Queue[tuple[Any, str, bytes] | None] = queue.Queue(MOST_WAITING)
_thread: threading.Thread | None = None
_lock = threading.Lock()


def offer(path: str, ti: Any) -> None:
    """Take a log that Airflow has completed, if it is a trigger's; never raises and never waits.

    :param path: below Airflow's ``base_log_folder``.
    :param ti: the task instance that the trigger worked for.
    """
    match = _TRIGGER_LOG.fullmatch(path)
    if match is None:
        return
    from airflow.configuration import conf

    if conf.getboolean("modal", "serverless", fallback=False):
        return  # there, the triggerer's entry process ships them
    try:
        content = _end_of(Path(conf.get("logging", "base_log_folder"), path))
        if content:
            _start()
            _waiting.put_nowait((ti, match["job"], content))
    except queue.Full:
        log.warning("Modal takes the logs of triggers too slowly; %s is on this host only", path)
    except OSError as error:
        log.warning("the log of a trigger can't be read: %s", error)


def _end_of(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - MOST_BYTES, 0))
        return file.read()


def _start() -> None:
    global _thread
    with _lock:
        if _thread is None:
            _thread = threading.Thread(target=_run, name="modal-trigger-logs", daemon=True)
            _thread.start()
            atexit.register(_finish)


def _finish() -> None:
    try:
        _waiting.put_nowait(None)
    except queue.Full:
        return
    if _thread is not None:
        _thread.join(END_SECONDS)


def _run() -> None:
    while (item := _waiting.get()) is not None:
        ti, job, content = item
        try:
            upload(ti, job, content)
        except Exception as error:
            log.warning("the log of a trigger of task %s is on this host only: %s", ti.task_id, error)


def upload(ti: Any, job: str, content: bytes) -> bool:
    """Put a trigger's log beside that of its task's try, if the Volume has one; return whether it has.

    :param job: id of the triggerer's job.
    :raises ModalflowError: the Volume can't be reached or is not configured.
    """
    from airflow_provider_modal.executors import owner, task_log

    key = wire.TaskKey(ti.dag_id, ti.task_id, ti.run_id, ti.try_number, ti.map_index)
    # The triggerer is not told which executor the task has.
    files = task_log.logs_of(owner.Owner(owner.team_with_executor(ti.dag_id))).files()
    if not attempt.find(files, key).pieces:
        return False
    prefix = segments.segment_prefix(segments.task_log(key), _began(content), f"{segments.TRIGGER}{job}")
    files.write(segments.segment_path(prefix, 1, last=True), content)
    return True


def _began(content: bytes) -> float:
    """Return when a log of Airflow 3 began, in seconds since the epoch."""
    for line in content.splitlines():
        try:
            # Before 3.11 Python reads no "Z".
            return datetime.fromisoformat(json.loads(line)["timestamp"].replace("Z", "+00:00")).timestamp()
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return datetime.now().timestamp()

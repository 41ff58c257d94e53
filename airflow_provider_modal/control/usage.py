"""How long did tasks run, and with what resources?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from airflow.configuration import conf
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from airflow.utils.session import create_session
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from airflow_provider_modal import airflow_settings, names
from airflow_provider_modal.config import WorkerProfile
from airflow_provider_modal.control.times import iso
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.executors import task_options

KEYS = {"dag": ("dag_id",), "run": ("dag_id", "run_id"), "task": ("dag_id", "task_id")}
"""What usage is added up by."""
_RUNNING = "running"


def usage(seconds: float, by: str) -> dict[str, Any]:
    """Return for how long tries of tasks ran, and with what.

    A try counts as far as it ran within the time that is asked for. Resources are those that its
    ``executor_config`` asks for, else those that its worker profile has now.

    :param seconds: how far back to look from now.
    :param by: a key of ``KEYS``.
    :return: ``since`` and ``until``; ``usage``: rows with the names that ``by`` says, ``cores``, ``mib`` and
        ``gpu`` of a container, ``tries`` and ``seconds``.
    """
    until = datetime.now(timezone.utc)
    since = datetime.fromtimestamp(until.timestamp() - seconds, timezone.utc)
    profiles = airflow_settings.deployed_config().workers
    default_queue = conf.get("operators", "default_queue", fallback=names.DEFAULT_PROFILE)
    added: dict[tuple[Any, ...], list[float]] = defaultdict(lambda: [0, 0.0])
    with create_session() as session:
        for row in _tries(session, since):
            size = _size(row.queue, row.executor_config, profiles, default_queue)
            key = (*(getattr(row, name) for name in KEYS[by]), *size)
            added[key][0] += 1
            begin, end = max(row.start_date, since), row.end_date or until
            added[key][1] += max((end - begin).total_seconds(), 0.0)
    columns = (*KEYS[by], "cores", "mib", "gpu")
    return {
        "since": iso(since),
        "until": iso(until),
        "usage": [
            {**dict(zip(columns, key, strict=True)), "tries": tries, "seconds": round(ran, 3)}
            for key, (tries, ran) in sorted(added.items(), key=lambda item: tuple(map(str, item[0])))
        ],
    }


def _tries(session: Session, since: datetime) -> Iterator[Any]:
    """Yield each try that ran since then, once: one that is to be repeated may be on record twice."""
    seen = set()
    for model in (TaskInstanceHistory, TaskInstance):
        columns = (
            model.dag_id,
            model.run_id,
            model.task_id,
            model.map_index,
            model.start_date,
            model.end_date,
            model.queue,
            model.executor_config,
        )
        ran = or_(model.end_date >= since, and_(model.end_date.is_(None), model.state == _RUNNING))
        for row in session.execute(select(*columns).where(model.start_date.is_not(None), ran)):
            key = tuple(row[:5])
            if key not in seen:
                seen.add(key)
                yield row


def _size(
    queue: str | None, executor_config: Any, profiles: Mapping[str, WorkerProfile], default_queue: str
) -> tuple[float, int, str | None]:
    """Return cores, MiB and GPU of a container for a task; of a range, what is reserved."""
    profile = profiles.get(task_options.profile_of_queue(queue, default_queue))
    if profile is None:
        # Its profile is gone; it can't have cost nothing.
        profile = profiles[names.DEFAULT_PROFILE]
    try:
        asked = task_options.read(executor_config).function
    except ConfigError:
        # Such a task was failed before it started; the rest of its record is worth as much as others'.
        return profile.cpu, profile.memory, profile.gpu
    cores = asked.cpu[0] if isinstance(asked.cpu, tuple) else asked.cpu
    mib = asked.memory[0] if isinstance(asked.memory, tuple) else asked.memory
    return cores or profile.cpu, mib or profile.memory, asked.gpu or profile.gpu

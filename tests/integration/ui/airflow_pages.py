"""Airflow's API server for tests: what its pages ask for; runs below a zygote."""

from __future__ import annotations

import json
from datetime import datetime
from logging.config import dictConfig
from typing import Any

TASK_LOGGING = {"handlers": "task", "loggers": "airflow.task"}


def add_task(dag_id: str, task_id: str, run_id: str, **values: Any) -> None:
    """Create a run, and give one of its task instances these values.

    ``former`` are those of its last try, ``events`` the texts of events that the executor noted about it.
    """
    import airflow_seed
    from airflow.models.log import Log
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.taskinstancehistory import TaskInstanceHistory
    from airflow.utils.session import create_session
    from sqlalchemy import select

    airflow_seed.queue_task(dag_id, task_id, run_id)
    former = values.pop("former", None)
    events = values.pop("events", {})
    with create_session() as session:
        ti = session.scalars(
            select(TaskInstance).filter_by(dag_id=dag_id, task_id=task_id, run_id=run_id)
        ).one()
        if former is not None:
            for name, value in former.items():
                setattr(ti, name, value)
            TaskInstanceHistory.record_ti(ti, session=session)
        for name, value in values.items():
            setattr(ti, name, datetime.fromisoformat(value) if name.endswith("_date") else value)
        session.flush()
        for event, text in events.items():
            session.add(Log(event=event, task_instance=ti.key, extra=text))


def take_over_log_template() -> None:
    """Have new runs use ``[logging] log_filename_template``, as after a migration."""
    from airflow.utils.db import synchronize_log_template
    from airflow.utils.session import create_session

    with create_session() as session:
        synchronize_log_template(session=session)


def get(paths: list[str], accept: str = "application/json") -> list[tuple[int, Any]]:
    """Return status and content of pages, as the UI asks for them; of a stream its lines."""
    from airflow.api_fastapi.app import create_app
    from fastapi.testclient import TestClient

    from airflow_provider_modal.log.config import LOGGING_CONFIG

    # As Airflow does when an API server starts; a worker's zygote has set up logging otherwise.
    parts = {kind: {name: LOGGING_CONFIG[kind][name]} for kind, name in TASK_LOGGING.items()}
    dictConfig({**LOGGING_CONFIG, **parts, "root": {}})
    with TestClient(create_app(apps="core")) as client:
        token = client.get("/auth/token").json()["access_token"]
        headers = {"Authorization": f"Bearer {token}", "Accept": accept}
        answers = [client.get(path, headers=headers) for path in paths]
    if accept == "application/json":
        return [(answer.status_code, answer.json()) for answer in answers]
    return [(answer.status_code, list(map(json.loads, answer.text.splitlines()))) for answer in answers]

"""Airflow's API server for tests: what its pages ask for; runs below a zygote."""

from __future__ import annotations

from typing import Any


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
            setattr(ti, name, value)
        session.flush()
        for event, text in events.items():
            session.add(Log(event=event, task_instance=ti.key, extra=text))


def get(paths: list[str]) -> list[tuple[int, Any]]:
    """Return status and content of pages, as the UI asks for them."""
    from airflow.api_fastapi.app import create_app
    from fastapi.testclient import TestClient

    with TestClient(create_app(apps="core")) as client:
        token = client.get("/auth/token").json()["access_token"]
        answers = [client.get(path, headers={"Authorization": f"Bearer {token}"}) for path in paths]
        return [(answer.status_code, answer.json()) for answer in answers]

"""How much is there to do, and how much went wrong lately? Asked with psycopg2, so that no Airflow starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psycopg2

from airflow_provider_modal import airflow_settings
from airflow_provider_modal.db.connect import application_name, connect, without_password
from airflow_provider_modal.errors import ModalflowError

if TYPE_CHECKING:
    from airflow_provider_modal.container.zygote import Zygote

LATELY_HOURS = 24

_TASKS = """
    SELECT state, count(*) FROM task_instance
     WHERE state IN ('scheduled', 'queued', 'running', 'deferred', 'up_for_retry', 'up_for_reschedule',
                     'restarting')
     GROUP BY state
"""
_RUNS = "SELECT state, count(*) FROM dag_run WHERE state IN ('queued', 'running') GROUP BY state"
_FAILED = f"""
    SELECT (SELECT count(*) FROM task_instance
             WHERE state = 'failed' AND end_date > now() - interval '{LATELY_HOURS} hours'),
           (SELECT count(*) FROM dag_run
             WHERE state = 'failed' AND end_date > now() - interval '{LATELY_HOURS} hours'),
           (SELECT count(*) FROM import_error)
"""


def counts(zygote: Zygote, op: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many tasks and runs there are.

    :return: ``tasks`` and ``runs`` that have not ended, by state; ``failed_tasks`` and ``failed_runs`` of the
        last ``LATELY_HOURS``; ``import_errors``.
    :raises UnreachableError: the database does not answer.
    :raises ModalflowError: it does not have Airflow's tables.
    """
    url = airflow_settings.database_url()
    env = airflow_settings.deployed_names().env
    connection = connect(url, application_name=application_name(env, op))
    try:
        with connection.cursor() as cursor:
            cursor.execute(_TASKS)
            tasks = dict(cursor.fetchall())
            cursor.execute(_RUNS)
            runs = dict(cursor.fetchall())
            cursor.execute(_FAILED)
            failed_tasks, failed_runs, import_errors = cursor.fetchone() or (0, 0, 0)
    except psycopg2.Error as error:
        told = without_password(" ".join(str(error).split()), url)
        raise ModalflowError(f"tasks can't be counted: {told}; see: modalflow doctor --env {env}") from None
    finally:
        connection.close()
    return {
        "tasks": tasks,
        "runs": runs,
        "failed_tasks": failed_tasks,
        "failed_runs": failed_runs,
        "import_errors": import_errors,
    }

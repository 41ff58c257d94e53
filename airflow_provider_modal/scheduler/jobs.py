"""How do Airflow's job rows tell the truth about a scheduler that mostly does not run?

Airflow decides by them whose tasks are orphans and whether the scheduler is healthy. Rows of ours carry the
environment in ``executor_class``, which Airflow 2.10 to 3.3 never reads back; an ``airflow scheduler`` that
somebody runs on the same database has none of it, and its rows are left alone.

All of this is for the holder of the scheduler's lock: under it, a row of ours that says "running" belongs to
a run that has ended, however it ended.
"""

from __future__ import annotations

import logging
from typing import Any

from psycopg2.extensions import connection as Connection

from airflow_provider_modal.db.connect import APPLICATION_PREFIX
from airflow_provider_modal.triggerer.need import WAITING

log = logging.getLogger(__name__)

SCHEDULER_JOB = "SchedulerJob"
DAG_PROCESSOR_JOB = "DagProcessorJob"
TRIGGERER_JOB = "TriggererJob"

_ENDED = """
    UPDATE job SET state = 'success', end_date = COALESCE(end_date, latest_heartbeat)
     WHERE job_type = %(type)s AND state = 'running' AND executor_class = %(marker)s
"""
# Airflow's adoption joins task instances with the job that queued them: rows of unfinished ones must stay.
_PRUNED = """
    DELETE FROM job
     WHERE job_type = %(type)s AND executor_class = %(marker)s AND state <> 'running'
       AND latest_heartbeat < now() - interval '1 hour'
       AND id NOT IN (SELECT queued_by_job_id FROM task_instance WHERE queued_by_job_id IS NOT NULL
                         AND state IN ('scheduled', 'queued', 'running', 'restarting', 'deferred',
                                       'up_for_reschedule', 'up_for_retry'))
"""
_LEFT_RUNNING = """
    UPDATE job SET state = 'running', end_date = NULL, latest_heartbeat = now()
     WHERE id = %(id)s AND job_type = %(type)s AND executor_class = %(marker)s
"""
_PROCESSOR_BEATS = """
    UPDATE job SET latest_heartbeat = now()
     WHERE job_type = %(type)s AND state = 'running' AND executor_class = %(marker)s
"""
_PROCESSOR_BORN = """
    INSERT INTO job (job_type, state, executor_class, hostname, unixname, start_date, latest_heartbeat)
    VALUES (%(type)s, 'running', %(marker)s, %(hostname)s, 'modal', now(), now())
"""
# Nobody minds that no triggerer lives as long as there is nothing for it to do. That its row has an end keeps
# Airflow from leaving triggers to it.
_TRIGGERER_RESTS = f"""
    UPDATE job SET state = 'running', latest_heartbeat = now()
     WHERE id = (SELECT max(id) FROM job WHERE job_type = %(type)s AND executor_class = %(marker)s)
       AND end_date IS NOT NULL AND NOT {WAITING}
"""
# Before the first trigger there is no row at all, which the UI shows as a triggerer that is broken.
_TRIGGERER_BORN = """
    INSERT INTO job
           (job_type, state, executor_class, hostname, unixname, start_date, end_date, latest_heartbeat)
    SELECT %(type)s, 'running', %(marker)s, %(hostname)s, 'modal', now(), now(), now()
     WHERE NOT EXISTS (SELECT 1 FROM job WHERE job_type = %(type)s AND executor_class = %(marker)s)
"""
_STRANGERS = """
    SELECT hostname FROM job
     WHERE job_type = %(type)s AND state = 'running' AND executor_class IS DISTINCT FROM %(marker)s
       AND latest_heartbeat > now() - interval '60 seconds'
"""


def marker(env: str) -> str:
    """Return what ``executor_class`` holds in the job rows of an environment."""
    return f"{APPLICATION_PREFIX}{env}"


def end_predecessors(connection: Connection, env: str, job_type: str) -> int:
    """End the rows of former runs, so that what they had is free at once; return how many there were."""
    strangers = _execute(connection, _STRANGERS, env, job_type)
    if strangers and job_type == SCHEDULER_JOB:
        log.warning(
            "another scheduler works on this database (on %s); give it a database of its own, or end it",
            ", ".join(sorted({str(host) for (host,) in strangers})),
        )
    with connection.cursor() as cursor:
        cursor.execute(_ENDED, {"type": job_type, "marker": marker(env)})
        return cursor.rowcount


def prune(connection: Connection, env: str, job_type: str) -> int:
    """Delete rows that nothing refers to any more: there is one for every run; return how many there were."""
    with connection.cursor() as cursor:
        cursor.execute(_PRUNED, {"type": job_type, "marker": marker(env)})
        return cursor.rowcount


def leave_healthy(connection: Connection, env: str, job_id: int, hostname: str) -> None:
    """Leave the run's row, and those of DAG processor and triggerer, as those of living jobs.

    Airflow's health check then is green until the threshold has passed, which is set to a few intervals: the
    environment is healthy as long as runs keep coming.
    """
    _execute(connection, _LEFT_RUNNING, env, SCHEDULER_JOB, id=job_id)
    _execute(connection, _TRIGGERER_RESTS, env, TRIGGERER_JOB)
    _execute(connection, _TRIGGERER_BORN, env, TRIGGERER_JOB, hostname=hostname)
    with connection.cursor() as cursor:
        values = {"type": DAG_PROCESSOR_JOB, "marker": marker(env), "hostname": hostname}
        cursor.execute(_PROCESSOR_BEATS, values)
        if cursor.rowcount == 0:
            cursor.execute(_PROCESSOR_BORN, values)


def still_healthy(env: str) -> str:
    """Return the statement with which a tick says that the environment is healthy although nothing runs.

    It refreshes the rows that ``leave_healthy`` left; a run that ended badly left none. Where that is not
    possible, it warns and fails nothing that comes after it.
    """
    rests = _TRIGGERER_RESTS % {"type": f"'{TRIGGERER_JOB}'", "marker": f"'{marker(env)}'"}
    return f"""
        DO $healthy$ BEGIN
            UPDATE job SET latest_heartbeat = now()
             WHERE state = 'running' AND executor_class = '{marker(env)}' AND end_date IS NULL
               AND job_type IN ('{SCHEDULER_JOB}', '{DAG_PROCESSOR_JOB}');
            {rests};
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'the health of Airflow could not be refreshed: %', SQLERRM;
        END $healthy$
    """


def _execute(
    connection: Connection, statement: str, env: str, job_type: str, **values: Any
) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, {"type": job_type, "marker": marker(env), **values})
        return cursor.fetchall() if cursor.description else []

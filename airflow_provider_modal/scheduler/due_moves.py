"""Which DAG runs and task instances could move?

Mirrors the statements of Airflow 3.3's ``SchedulerJobRunner``, ``DagRun`` and ``DagModel``.

A running DAG run can only move on after something changed, because Airflow looks at all of them in every
loop: it is compared when it was last looked at (``last_scheduling_decision``) with when task instances of its
DAG last changed. A change counts for ``{margin}`` longer, because it becomes visible a little after the time
that is written into it, and clocks differ.
"""

from __future__ import annotations

from airflow_provider_modal.scheduler.due_question import AT_LIMIT, LIVE, OF_RUN, SETTLED, Question

RETRIES = "a retry is due"

QUESTIONS = (
    Question(
        "a scheduled DAG run is due",
        ("dag",),
        f"""
        SELECT bool_or(d.next_dagrun_create_after <= now()),
               min(d.next_dagrun_create_after) FILTER (WHERE d.next_dagrun_create_after > now()), NULL::jsonb
          FROM dag d
         WHERE d.next_dagrun_create_after IS NOT NULL AND NOT d.is_paused AND NOT d.is_stale
           AND NOT d.has_import_errors AND NOT {AT_LIMIT}
           AND EXISTS (SELECT 1 FROM serialized_dag s WHERE s.dag_id = d.dag_id)
           AND (coalesce((to_jsonb(d) -> 'allowed_run_types')::text, 'null') ~ '^null$|"scheduled"'
                OR EXISTS (SELECT 1 FROM dag_run r
                            WHERE r.dag_id = d.dag_id AND r.logical_date = d.next_dagrun))
        """,
    ),
    Question(
        "a DAG has room for another run",
        ("dag",),
        # Airflow finds out when a run ends in its scheduler, not when a person ends it.
        f"""
        SELECT EXISTS (
            SELECT 1 FROM dag d
             WHERE {AT_LIMIT} AND NOT d.is_paused AND NOT d.is_stale
               AND (SELECT count(*) FROM dag_run r
                     WHERE r.dag_id = d.dag_id AND r.state IN ('queued', 'running')
                       AND r.run_type <> 'backfill') < d.max_active_runs),
            NULL::timestamptz, NULL::jsonb
        """,
    ),
    Question(
        "a queued DAG run can start",
        (
            "dag_run",
            "backfill",
        ),
        """
        WITH active AS (SELECT dag_id, coalesce(backfill_id, -1) AS backfill, count(*) AS runs
                          FROM dag_run WHERE state = 'running' GROUP BY 1, 2)
        SELECT bool_or(r.run_after <= now()), min(r.run_after) FILTER (WHERE r.run_after > now()), NULL::jsonb
          FROM dag_run r JOIN dag d ON d.dag_id = r.dag_id
          LEFT JOIN backfill b ON b.id = r.backfill_id
          LEFT JOIN active a ON a.dag_id = r.dag_id AND a.backfill = coalesce(r.backfill_id, -1)
         WHERE r.state = 'queued' AND NOT d.is_paused AND NOT d.is_stale
           AND NOT coalesce(b.is_paused, false)
           AND coalesce(a.runs, 0) < coalesce(b.max_active_runs, d.max_active_runs)
           AND EXISTS (SELECT 1 FROM serialized_dag s WHERE s.dag_id = r.dag_id)
        """,
    ),
    Question(
        "a DAG run can move on",
        ("task_instance",),
        # A run may wait for one before it (depends_on_past) or beside it (max_active_tis_per_dag).
        f"""
        WITH live AS (
            SELECT r.dag_id, r.run_id, r.run_after, r.logical_date, r.last_scheduling_decision AS looked_at
            {LIVE}),
        dags AS (
            SELECT dag_id, min(looked_at) AS looked_at, min(logical_date) AS oldest
              FROM live GROUP BY dag_id),
        runs AS (
            SELECT dag_id, run_id FROM live
            UNION SELECT q.dag_id, q.run_id FROM dags g
                    JOIN dag_run q ON q.dag_id = g.dag_id AND q.updated_at > g.looked_at - {{margin}}
            UNION SELECT g.dag_id, q.run_id FROM dags g, LATERAL (
                    SELECT run_id FROM dag_run WHERE dag_id = g.dag_id AND logical_date < g.oldest
                     ORDER BY logical_date DESC LIMIT 5) q),
        changes AS (
            SELECT t.dag_id, max(t.updated_at) AS at
              FROM runs r JOIN task_instance t ON {OF_RUN} AND {SETTLED} GROUP BY t.dag_id)
        SELECT bool_or((l.looked_at IS NULL AND coalesce(l.logical_date <= now(), true))
                       OR c.at > l.looked_at - {{margin}} OR l.run_after > l.looked_at
                       OR (l.logical_date > l.looked_at AND l.logical_date <= now())),
               LEAST(min(l.logical_date) FILTER (WHERE l.logical_date > now()),
                     (SELECT min(r.run_after) FROM dag_run r JOIN dag d ON d.dag_id = r.dag_id
                       WHERE r.state = 'running' AND NOT d.is_paused AND NOT d.is_stale
                         AND r.run_after > now())), NULL::jsonb
          FROM live l LEFT JOIN changes c ON c.dag_id = l.dag_id
        """,
    ),
    Question(
        "a DAG changed under its runs",
        ("serialized_dag",),
        f"""
        SELECT EXISTS (SELECT 1 {LIVE} AND EXISTS (
                    SELECT 1 FROM serialized_dag s WHERE s.dag_id = r.dag_id
                       AND s.last_updated > r.last_scheduling_decision - {{margin}})),
               NULL::timestamptz, NULL::jsonb
        """,
    ),
    Question(
        "a DAG run has reached its dagrun_timeout",
        ("serialized_dag",),
        # A compressed serialized DAG can't be read here: then its runs are looked at each time.
        f"""
        WITH live AS (SELECT r.dag_id, r.created_dag_version_id AS version, min(r.start_date) AS began
                      {LIVE} GROUP BY 1, 2),
        timeouts AS (
            SELECT l.began, s.data IS NULL AS unreadable,
                   make_interval(secs => (s.data -> 'dag' ->> 'dagrun_timeout')::float) AS longest
              FROM live l JOIN serialized_dag s ON s.dag_id = l.dag_id AND (
                   s.dag_version_id = l.version OR s.created_at = (
                       SELECT max(x.created_at) FROM serialized_dag x WHERE x.dag_id = l.dag_id)))
        SELECT bool_or(unreadable OR began + longest < now()),
               min(began + longest) FILTER (WHERE began + longest >= now()), NULL::jsonb FROM timeouts
        """,
    ),
    Question(
        "a task can be queued",
        (
            "task_instance",
            "slot_pool",
            "dag_version",
        ),
        # The limits of single tasks are in the serialized DAG; if that is compressed, they hold nothing.
        """
        WITH used AS (
            SELECT t.pool, sum(t.pool_slots) AS slots
              FROM task_instance t LEFT JOIN slot_pool p ON p.pool = t.pool
             WHERE t.state IN ('running', 'queued') OR (t.state = 'deferred' AND p.include_deferred)
             GROUP BY t.pool),
        active AS (
            SELECT dag_id, run_id, count(*) AS tasks
              FROM task_instance WHERE state IN ('running', 'queued') GROUP BY 1, 2),
        fitting AS (
            SELECT DISTINCT t.dag_id, t.run_id, t.task_id, d.has_task_concurrency_limits AS limited,
                   CASE WHEN r.bundle_version IS NOT NULL THEN r.created_dag_version_id END AS version
              FROM task_instance t
              JOIN dag_run r ON r.dag_id = t.dag_id AND r.run_id = t.run_id AND r.state = 'running'
              JOIN dag d ON d.dag_id = t.dag_id AND NOT d.is_paused AND d.bundle_name IS NOT NULL
              JOIN slot_pool p ON p.pool = t.pool
              LEFT JOIN used u ON u.pool = t.pool
              LEFT JOIN active a ON a.dag_id = t.dag_id AND a.run_id = t.run_id
             WHERE t.state = 'scheduled' AND coalesce(a.tasks, 0) < d.max_active_tasks
               AND (p.slots = -1 OR p.slots - coalesce(u.slots, 0) >= t.pool_slots)),
        versions AS (
            SELECT dag_id, run_id, coalesce(version, (
                   SELECT v.id FROM dag_version v WHERE v.dag_id = f.dag_id
                    ORDER BY v.version_number DESC LIMIT 1)) AS version
              FROM fitting f WHERE limited GROUP BY dag_id, run_id, version),
        limits AS (
            SELECT v.dag_id, v.run_id, task ->> 'task_id' AS task_id,
                   coalesce(task ->> 'max_active_tis_per_dag',
                            task -> 'partial_kwargs' ->> 'max_active_tis_per_dag')::int AS of_dag,
                   coalesce(task ->> 'max_active_tis_per_dagrun',
                            task -> 'partial_kwargs' ->> 'max_active_tis_per_dagrun')::int AS of_run
              FROM versions v JOIN serialized_dag s ON s.dag_version_id = v.version,
                   LATERAL (SELECT t -> '__var' AS task
                              FROM jsonb_array_elements(to_jsonb(s.data) -> 'dag' -> 'tasks') AS t) x),
        under_way AS (
            SELECT dag_id, run_id, task_id, count(*) AS of_run,
                   sum(count(*)) OVER (PARTITION BY dag_id, task_id) AS of_dag
              FROM task_instance
             WHERE state IN ('running', 'queued', 'deferred', 'awaiting_input')
               AND dag_id IN (SELECT dag_id FROM versions)
             GROUP BY dag_id, run_id, task_id)
        SELECT (SELECT coalesce(sum(tasks), 0) FROM active) < {parallelism} AND EXISTS (
            SELECT 1 FROM fitting f
             WHERE NOT EXISTS (
                   SELECT 1 FROM limits l JOIN under_way w ON w.dag_id = l.dag_id AND w.task_id = l.task_id
                    WHERE (l.dag_id, l.run_id, l.task_id) = (f.dag_id, f.run_id, f.task_id)
                      AND (w.of_dag >= l.of_dag OR (w.run_id = l.run_id AND w.of_run >= l.of_run)))),
            NULL::timestamptz, NULL::jsonb
        """,
    ),
    Question(
        "a sensor is due again",
        ("task_reschedule",),
        f"""
        SELECT bool_or(coalesce(s.at, now()) <= now()), min(s.at) FILTER (WHERE s.at > now()), NULL::jsonb
          FROM (SELECT (SELECT x.reschedule_date FROM task_reschedule x WHERE x.ti_id = t.id
                         ORDER BY x.id DESC LIMIT 1) AS at
                  FROM task_instance t
                 WHERE t.state = 'up_for_reschedule' AND EXISTS (SELECT 1 {LIVE} AND {OF_RUN})) s
        """,
    ),
    Question(
        RETRIES,
        ("task_instance",),
        f"""
        WITH waiting AS (
            SELECT t.dag_id, t.task_id, t.try_number, t.dag_version_id, t.end_date, r.logical_date,
                   to_jsonb(t) ->> 'retry_delay_override' AS delay
              FROM task_instance t JOIN dag_run r ON {OF_RUN}
             WHERE t.state = 'up_for_retry' AND EXISTS (
                   SELECT 1 FROM dag d WHERE d.dag_id = r.dag_id AND NOT d.is_paused AND NOT d.is_stale)
               AND r.state = 'running' ORDER BY t.end_date LIMIT {{most_rows}}),
        tasks AS (
            SELECT s.dag_version_id, task -> '__var' ->> 'task_id' AS task_id, task -> '__var' AS task,
                   to_jsonb(s.data) -> 'client_defaults' -> 'tasks' AS defaults
              FROM serialized_dag s, jsonb_array_elements(to_jsonb(s.data) -> 'dag' -> 'tasks') AS task
             WHERE s.dag_version_id IN (SELECT dag_version_id FROM waiting)
               AND task -> '__var' ->> 'task_id' IN (SELECT task_id FROM waiting))
        SELECT count(*) >= {{most_rows}}, NULL::timestamptz,
               jsonb_agg(jsonb_build_object(
                   'dag_id', w.dag_id, 'task_id', w.task_id, 'try_number', w.try_number, 'delay', w.delay,
                   'ended', extract(epoch FROM w.end_date),
                   'logical_date', to_char(w.logical_date AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'),
                   'task', jsonb_build_object(
                       'retry_delay', task -> 'retry_delay', 'max_retry_delay', task -> 'max_retry_delay',
                       'retry_exponential_backoff', task -> 'retry_exponential_backoff',
                       'partial_kwargs', task -> 'partial_kwargs'),
                   'defaults', defaults, 'known', task IS NOT NULL))
          FROM waiting w LEFT JOIN tasks s ON s.dag_version_id = w.dag_version_id AND s.task_id = w.task_id
        """,
    ),
    Question(
        "a deferred task has reached its timeout",
        ("task_instance",),
        """
        SELECT bool_or(trigger_timeout < now()), min(trigger_timeout) FILTER (WHERE trigger_timeout >= now()),
               NULL::jsonb
          FROM task_instance WHERE state IN ('deferred', 'awaiting_input') AND trigger_timeout IS NOT NULL
        """,
    ),
    Question(
        "a running or queued task must be looked after",
        ("task_instance",),
        # Without a sign of life Airflow gives a task up; before that, and for one that waits to be started,
        # the executor asks Modal, less and less often. An adoption is written into updated_at. An id without
        # a function call is that of a dispatch whose scheduler died while it was submitted.
        """
        WITH taken AS (
            SELECT t.state, t.last_heartbeat_at, t.queued_dttm, t.external_executor_id,
                   CASE t.state WHEN 'queued' THEN t.queued_dttm ELSE t.last_heartbeat_at END AS sign,
                   t.updated_at AS looked_at
              FROM task_instance t
              JOIN dag_run r ON r.dag_id = t.dag_id AND r.run_id = t.run_id AND r.state = 'running'
             WHERE t.state IN ('queued', 'running', 'restarting')),
        asked AS (
            SELECT *, looked_at + LEAST(GREATEST(looked_at - sign, {silent}), {longest_silence}) AS ask_at,
                   CASE state WHEN 'queued' THEN queued_dttm + {queued_timeout}
                              ELSE last_heartbeat_at + {heartbeat_timeout} END AS give_up_at
              FROM taken)
        SELECT bool_or(state = 'restarting' OR give_up_at < now()
                       OR (sign < now() - {silent} AND ask_at <= now())
                       OR (state = 'queued' AND coalesce(external_executor_id, '') ~ '^[0-9a-f-]{{0,36}}$')),
               min(GREATEST(ask_at, sign + {silent})) FILTER (WHERE state = 'queued' AND ask_at > now()),
               NULL::jsonb
          FROM asked
        """,
    ),
    Question(
        "runs of a paused DAG can end",
        ("task_instance",),
        f"""
        SELECT EXISTS (
            SELECT 1 FROM dag_run r JOIN dag d ON d.dag_id = r.dag_id AND d.is_paused
             WHERE r.state = 'running' AND EXISTS (
                   SELECT 1 FROM task_instance t WHERE {OF_RUN} AND {SETTLED}
                      AND t.updated_at >= r.last_scheduling_decision - {{margin}})),
            NULL::timestamptz, NULL::jsonb
        """,
    ),
)

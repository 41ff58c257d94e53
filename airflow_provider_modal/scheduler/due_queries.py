"""What would a full scheduler run change? One question per duty of Airflow's scheduler, in SQL.

Columns that came with later releases are read with ``to_jsonb``, which has nothing to say about a column that
is not there; ``due_script`` leaves out questions whose tables are not there.

A running DAG run can only move on after something changed, because Airflow looks at all of them in every
loop: it is compared when it was last looked at (``last_scheduling_decision``) with when task instances of its
DAG last changed. A change counts for ``{margin}`` longer, because it becomes visible a little after the time
that is written into it, and clocks differ. Everything else mirrors the statements of Airflow 3.3's
``SchedulerJobRunner``, ``DagRun`` and ``DagModel``.
"""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_modal.triggerer.need import LIVES, WAITING

_LIVE = """
    FROM dag_run r JOIN dag d ON d.dag_id = r.dag_id
    WHERE r.state = 'running' AND NOT d.is_paused AND NOT d.is_stale AND r.run_after <= now()
"""
_SETTLED = """coalesce(t.state, '') NOT IN (
    'running', 'queued', 'restarting', 'deferred', 'scheduled', 'awaiting_input')"""
_EXCEEDS = "coalesce((to_jsonb(d) ->> 'exceeds_max_non_backfill')::boolean, false)"
_OF_RUN = "t.dag_id = r.dag_id AND t.run_id = r.run_id"


@dataclass(frozen=True)
class Question:
    """One question.

    :param reason: what to say when the answer is yes.
    :param tables: asked only where these tables exist.
    :param query: returns one row: ``due``; ``at``, when the clock alone makes it due, or null; ``rows``,
        what Python has to look at (see ``due_rules``), or null.
    """

    reason: str
    tables: tuple[str, ...]
    query: str


RETRIES = "a retry is due"
ASSETS = "assets were updated"
ACTIVE = "active"
TRIGGERS = "triggers"

QUESTIONS = (
    Question(
        "a scheduled DAG run is due",
        ("dag",),
        f"""
        SELECT bool_or(d.next_dagrun_create_after <= now()),
               min(d.next_dagrun_create_after) FILTER (WHERE d.next_dagrun_create_after > now()), NULL::jsonb
          FROM dag d
         WHERE d.next_dagrun_create_after IS NOT NULL AND NOT d.is_paused AND NOT d.is_stale
           AND NOT d.has_import_errors AND NOT {_EXCEEDS}
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
        """,
    ),
    Question(
        "a DAG run can move on",
        ("task_instance",),
        # A run may wait for one before it (depends_on_past) or beside it (max_active_tis_per_dag).
        f"""
        WITH live AS (
            SELECT r.dag_id, r.run_id, r.run_after, r.logical_date, r.last_scheduling_decision AS looked_at
            {_LIVE}),
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
              FROM runs r JOIN task_instance t ON {_OF_RUN} AND {_SETTLED} GROUP BY t.dag_id)
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
        SELECT EXISTS (SELECT 1 {_LIVE} AND EXISTS (
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
                      {_LIVE} GROUP BY 1, 2),
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
        ),
        """
        WITH used AS (
            SELECT t.pool, sum(t.pool_slots) AS slots
              FROM task_instance t LEFT JOIN slot_pool p ON p.pool = t.pool
             WHERE t.state IN ('running', 'queued') OR (t.state = 'deferred' AND p.include_deferred)
             GROUP BY t.pool),
        active AS (
            SELECT dag_id, run_id, count(*) AS tasks
              FROM task_instance WHERE state IN ('running', 'queued') GROUP BY 1, 2)
        SELECT (SELECT coalesce(sum(tasks), 0) FROM active) < {parallelism} AND EXISTS (
            SELECT 1 FROM task_instance t
              JOIN dag_run r ON r.dag_id = t.dag_id AND r.run_id = t.run_id AND r.state = 'running'
              JOIN dag d ON d.dag_id = t.dag_id AND NOT d.is_paused AND d.bundle_name IS NOT NULL
              JOIN slot_pool p ON p.pool = t.pool
              LEFT JOIN used u ON u.pool = t.pool
              LEFT JOIN active a ON a.dag_id = t.dag_id AND a.run_id = t.run_id
             WHERE t.state = 'scheduled' AND coalesce(a.tasks, 0) < d.max_active_tasks
               AND (p.slots = -1 OR p.slots - coalesce(u.slots, 0) >= t.pool_slots)),
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
                 WHERE t.state = 'up_for_reschedule' AND EXISTS (SELECT 1 {_LIVE} AND {_OF_RUN})) s
        """,
    ),
    Question(
        RETRIES,
        ("task_instance",),
        f"""
        WITH waiting AS (
            SELECT t.dag_id, t.task_id, t.try_number, t.dag_version_id, t.end_date, r.logical_date,
                   to_jsonb(t) ->> 'retry_delay_override' AS delay
              FROM task_instance t JOIN dag_run r ON {_OF_RUN}
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
                   SELECT 1 FROM task_instance t WHERE {_OF_RUN} AND {_SETTLED}
                      AND t.updated_at >= r.last_scheduling_decision - {{margin}})),
            NULL::timestamptz, NULL::jsonb
        """,
    ),
    Question(
        ASSETS,
        ("asset_dag_run_queue",),
        f"""
        SELECT bool_or(d.asset_expression IS NULL), NULL::timestamptz,
               jsonb_agg(jsonb_build_object('expression', d.asset_expression, 'queued', q.assets))
                   FILTER (WHERE NOT d.is_paused AND NOT d.is_stale AND NOT d.has_import_errors
                             AND NOT {_EXCEEDS}
                             AND EXISTS (SELECT 1 FROM serialized_dag s WHERE s.dag_id = d.dag_id)
                             AND (SELECT count(*) FROM dag_run r WHERE r.dag_id = d.dag_id
                                     AND r.state IN ('queued', 'running')) < d.max_active_runs)
          FROM (SELECT target_dag_id, jsonb_agg(asset_id) AS assets
                  FROM asset_dag_run_queue GROUP BY target_dag_id) q
          JOIN dag d ON d.dag_id = q.target_dag_id
        """,
    ),
    Question(
        "partitions of assets were updated",
        (
            "asset_partition_dag_run",
            "partitioned_asset_key_log",
        ),
        # Whether a partition is complete takes Airflow's mappers: it is looked at once after each change.
        """
        SELECT EXISTS (
            SELECT 1 FROM asset_partition_dag_run p
              JOIN dag d ON d.dag_id = p.target_dag_id AND NOT d.is_stale
             WHERE p.created_dag_run_id IS NULL AND (
                   p.updated_at > {looked_at} - {margin}
                OR EXISTS (SELECT 1 FROM partitioned_asset_key_log k
                            WHERE k.asset_partition_dag_run_id = p.id
                              AND k.created_at > {looked_at} - {margin})
                OR EXISTS (SELECT 1 FROM serialized_dag s
                            WHERE s.dag_id = d.dag_id AND s.last_updated > {looked_at} - {margin}))),
            NULL::timestamptz, NULL::jsonb
        """,
    ),
    Question(
        "a backfill is complete",
        (
            "backfill",
            "backfill_dag_run",
        ),
        """
        SELECT bool_or(b.begun OR b.created_at < now() - interval '2 minutes'),
               min(b.created_at) FILTER (WHERE NOT b.begun) + interval '2 minutes', NULL::jsonb
          FROM (SELECT created_at,
                       EXISTS (SELECT 1 FROM backfill_dag_run x WHERE x.backfill_id = b.id) AS begun
                  FROM backfill b
                 WHERE completed_at IS NULL AND NOT EXISTS (
                       SELECT 1 FROM dag_run r
                        WHERE r.backfill_id = b.id AND r.state IN ('queued', 'running'))) b
        """,
    ),
    Question(
        "callbacks wait",
        ("callback",),
        # Those of the triggerer have triggers. One that an executor has should be over soon.
        """
        SELECT EXISTS (SELECT 1 FROM callback WHERE
                   (type = 'dag_processor' AND bundle_name = '{bundle}')
                OR (type = 'executor' AND (state = 'pending' OR (state IN ('queued', 'running')
                                           AND created_at < now() - {silent})))),
            NULL::timestamptz, NULL::jsonb
        """,
    ),
    Question(
        "a deadline has passed",
        ("deadline",),
        """
        SELECT bool_or(deadline_time < now()), min(deadline_time) FILTER (WHERE deadline_time >= now()),
               NULL::jsonb
          FROM deadline x
         WHERE NOT coalesce((to_jsonb(x) ->> 'missed')::boolean, to_jsonb(x) ->> 'callback_state' IS NOT NULL)
        """,
    ),
    Question(
        "a connection test waits",
        ("connection_test_request",),
        """
        SELECT bool_or(state = 'pending' OR updated_at < now() - {connection_test}),
               min(updated_at) FILTER (WHERE updated_at >= now() - {connection_test}) + {connection_test},
               NULL::jsonb
          FROM connection_test_request WHERE state IN ('pending', 'queued', 'running')
        """,
    ),
    Question(
        "DAG files must be parsed",
        (
            "dag_bundle",
            "dag_priority_parsing_request",
        ),
        """
        SELECT {files_changed} OR EXISTS (
                   SELECT 1 FROM dag_priority_parsing_request WHERE bundle_name = '{bundle}')
               OR expires.at < now(), expires.at, NULL::jsonb
          FROM (SELECT LEAST(
                   (SELECT min(last_parsed_time) FROM dag WHERE bundle_name = '{bundle}' AND NOT is_stale),
                   (SELECT min(timestamp) FROM import_error WHERE bundle_name = '{bundle}'))
                   + {parse_interval} AS at) expires
        """,
    ),
    Question(
        "assets must be activated or put aside",
        (
            "asset_active",
            "asset_alias_asset",
            "task_inlet_asset_reference",
        ),
        """
        WITH known AS (
            SELECT a.name, a.uri,
                   EXISTS (SELECT 1 FROM dag_schedule_asset_reference x WHERE x.asset_id = a.id)
                OR EXISTS (SELECT 1 FROM task_outlet_asset_reference x WHERE x.asset_id = a.id)
                OR EXISTS (SELECT 1 FROM task_inlet_asset_reference x WHERE x.asset_id = a.id)
                OR EXISTS (SELECT 1 FROM asset_alias_asset x WHERE x.asset_id = a.id) AS used,
                EXISTS (SELECT 1 FROM asset_active x WHERE x.name = a.name AND x.uri = a.uri) AS active
              FROM asset a)
        SELECT EXISTS (SELECT 1 FROM known k WHERE (k.active AND NOT k.used) OR (k.used AND NOT k.active
                   AND NOT EXISTS (SELECT 1 FROM asset_active x WHERE x.name = k.name OR x.uri = k.uri))),
            NULL::timestamptz, NULL::jsonb
        """,
    ),
    Question(
        "triggers are left over",
        (
            "trigger",
            "callback",
            "asset_watcher",
        ),
        """
        SELECT EXISTS (SELECT 1 FROM trigger g
            WHERE NOT EXISTS (SELECT 1 FROM task_instance t WHERE t.trigger_id = g.id)
              AND NOT EXISTS (SELECT 1 FROM callback c WHERE c.trigger_id = g.id)
              AND NOT EXISTS (SELECT 1 FROM asset_watcher w WHERE w.trigger_id = g.id)),
            NULL::timestamptz, NULL::jsonb
        """,
    ),
    Question(
        "triggers wait for a triggerer",
        ("trigger",),
        f"SELECT {WAITING} AND NOT {LIVES}, NULL::timestamptz, NULL::jsonb",
    ),
    Question(
        "a cancelled call may not have ended",
        ("log",),
        # The events of executors.database. Their texts begin with the dispatch; what follows, such as the
        # call, is not the same in both.
        """
        SELECT EXISTS (SELECT 1 FROM log l
            WHERE l.event = 'modal call cancelled'
              AND l.dttm BETWEEN now() - interval '15 minutes' AND now() - interval '40 seconds'
              AND NOT EXISTS (SELECT 1 FROM log e WHERE e.event = 'modal call ended' AND e.dttm >= l.dttm
                               AND substring(e.extra from '^[^/: ]+') = substring(l.extra from '^[^/: ]+'))),
            NULL::timestamptz, NULL::jsonb
        """,
    ),
    # Not reasons for a run, but facts that the tick needs.
    Question(
        ACTIVE,
        ("task_instance",),
        # A run of a paused DAG moves only while tasks of it are under way.
        """
        SELECT EXISTS (SELECT 1 FROM dag_run r JOIN dag d ON d.dag_id = r.dag_id
                        WHERE r.state = 'running' AND NOT d.is_paused AND NOT d.is_stale)
            OR EXISTS (SELECT 1 FROM task_instance
                        WHERE state IN ('queued', 'running', 'restarting', 'deferred')),
               NULL::timestamptz, NULL::jsonb
        """,
    ),
    Question(
        TRIGGERS,
        ("trigger",),
        f"SELECT {WAITING}, NULL::timestamptz, NULL::jsonb",
    ),
)

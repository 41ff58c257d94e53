"""What would a full scheduler run look after besides runs and tasks? Mirrors Airflow's timed duties."""

from __future__ import annotations

from airflow_provider_modal.scheduler.due_question import AT_LIMIT, Question
from airflow_provider_modal.triggerer.need import LIVES, WAITING

ASSETS = "assets were updated"
TRIGGERER_DUE = "triggers wait for a triggerer"

QUESTIONS = (
    Question(
        ASSETS,
        ("asset_dag_run_queue",),
        f"""
        SELECT bool_or(d.asset_expression IS NULL), NULL::timestamptz,
               jsonb_agg(jsonb_build_object('expression', d.asset_expression, 'queued', q.assets))
                   FILTER (WHERE NOT d.is_paused AND NOT d.is_stale AND NOT d.has_import_errors
                             AND NOT {AT_LIMIT}
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
        TRIGGERER_DUE,
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
)

"""How are all questions asked in one round trip, whichever tables there are?

They go to the server as one statement string: an anonymous block that asks one question after the other and
keeps the answers, and a statement that returns them. A question whose tables the installed Airflow does not
have is left out; one that fails for another reason, such as a column that a newer Airflow renamed, counts as
a yes.
"""

from __future__ import annotations

from collections.abc import Mapping

from airflow_provider_modal.db.lock import HOLDER
from airflow_provider_modal.scheduler.due_queries import QUESTIONS

_BLOCK = """
    IF {condition} THEN
        BEGIN
            EXECUTE $query$ {query} $query$ INTO hit, at, details;
            found := found || jsonb_build_object('reason', '{reason}', 'due', coalesce(hit, false),
                                                 'at', extract(epoch FROM at), 'rows', details);
        EXCEPTION WHEN OTHERS THEN
            found := found || jsonb_build_object('reason', '{reason}', 'due', true, 'error', SQLERRM);
        END;
    END IF;
"""
_SCRIPT = """
DO $check$
DECLARE found jsonb := '[]'; hit boolean; at timestamptz; details jsonb;
BEGIN
{blocks}
    PERFORM set_config('modalflow.found', found::text, true);
END $check$;
SELECT current_setting('modalflow.found'), extract(epoch FROM now())::float, ({knobs}), ({holder})
"""

KNOBS = """
    SELECT md5(concat_ws('/',
        (SELECT string_agg(concat_ws(',', dag_id, is_paused, max_active_runs, max_active_tasks), ';'
                           ORDER BY dag_id) FROM dag WHERE NOT is_stale),
        (SELECT string_agg(concat_ws(',', pool, slots, include_deferred), ';' ORDER BY pool) FROM slot_pool),
        (SELECT string_agg(concat_ws(',', id, is_paused, max_active_runs), ';' ORDER BY id)
           FROM backfill WHERE completed_at IS NULL)))
"""
"""What people may change without leaving a time behind: pausing and limits. Compared with its last value."""


def script(values: Mapping[str, str]) -> str:
    """Return the statements of one check.

    :param values: SQL expressions by the names in braces in ``QUESTIONS``; no user's text is among them.
    :return: the last statement returns the answers as JSON, the server's time in seconds since the epoch, and
        ``KNOBS`` and the application name of who holds the scheduler's lock.
    """
    blocks = (
        _BLOCK.format(
            condition=" AND ".join(f"to_regclass('{table}') IS NOT NULL" for table in question.tables),
            reason=question.reason,
            query=question.query.format(**values),
        )
        for question in QUESTIONS
    )
    return _SCRIPT.format(blocks="".join(blocks), knobs=KNOBS, holder=f"{HOLDER} LIMIT 1")

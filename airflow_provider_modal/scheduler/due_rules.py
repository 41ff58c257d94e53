"""Two rules of Airflow's that take more than SQL: when a retry is due, and whether updated assets suffice.

Both say yes when they meet something that they don't know.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from typing import Any

LONGEST_DELAY = 24 * 60 * 60.0
"""Airflow's ``MAX_RETRY_DELAY``."""
DEFAULT_DELAY = 300.0
"""Airflow's ``retry_delay`` where neither the task nor its client's defaults say otherwise."""


def retry_at(row: Mapping[str, Any]) -> float | None:
    """Return when a task instance that is up for retry is due, in seconds since the epoch; None if unknown.

    The same as ``TaskInstance.next_retry_datetime`` of Airflow 3.3, from the serialized task.

    :param row: what the question about retries returned for it.
    """
    ended = row["ended"]
    if ended is None:
        return None
    if row["delay"] is not None:
        return float(ended) + float(row["delay"])
    if not row["known"]:
        return None
    try:
        return float(ended) + _delay(row)
    except (KeyError, TypeError, ValueError):
        return None


def assets_suffice(expression: Any, queued: Collection[int]) -> bool:
    """Return whether a DAG whose schedule is ``expression`` can start.

    :param expression: ``dag.asset_expression``.
    :param queued: ids of the assets that were updated since its last run.
    """
    if isinstance(expression, Mapping) and len(expression) == 1:
        [(kind, value)] = expression.items()
        if kind == "all":
            return all(assets_suffice(part, queued) for part in value)
        if kind == "any":
            return any(assets_suffice(part, queued) for part in value)
        if kind == "asset" and "id" in value:
            return value["id"] in queued
    # References and aliases are resolved in the database; Airflow finds out.
    return True


def _delay(row: Mapping[str, Any]) -> float:
    def setting(name: str, default: float | None) -> float | None:
        for source in (row["task"], row["task"].get("partial_kwargs") or {}, row["defaults"] or {}):
            value = source.get(name)
            if value is not None:
                return _number(value)
        return default

    delay = setting("retry_delay", DEFAULT_DELAY)
    assert delay is not None
    multiplier = setting("retry_exponential_backoff", 0.0) or 1.0
    if multiplier == 1.0 or multiplier < 0:
        return delay
    try:
        least = max(math.ceil(delay * multiplier ** (row["try_number"] - 1)), 1)
    except OverflowError:
        least = int(LONGEST_DELAY)
    identity = f"{row['dag_id']}#{row['task_id']}#{_date(row['logical_date'])}#{row['try_number']}"
    spread = int(hashlib.sha1(identity.encode(), usedforsecurity=False).hexdigest(), 16) % least
    longest = setting("max_retry_delay", None)
    return min(least + spread, LONGEST_DELAY, longest or LONGEST_DELAY)


def _number(value: Any) -> float:
    """Return a serialized number or timedelta as a number."""
    return float(value["__var"] if isinstance(value, Mapping) else value)


def _date(value: str | None) -> str:
    """Return a date as Python prints it: without a fraction if that is zero."""
    return "None" if value is None else value.removesuffix(".000000") + "+00:00"

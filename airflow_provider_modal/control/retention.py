"""What of the Volume does the database still refer to? Asked in batches by ``clean``; changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from urllib.parse import unquote_to_bytes

from airflow.models.dag import DagModel
from airflow.models.dag_version import DagVersion
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from sqlalchemy import and_, func, or_, select, tuple_
from sqlalchemy.orm import Session

from airflow_provider_modal.retention.runs import GONE, KEPT, OLD
from airflow_provider_modal.volume.paths import SHORTENED, safe_segment, segment_text

ENDED = ("success", "failed")
"""States of a run that has ended."""
UNFINISHED = (
    "scheduled",
    "queued",
    "running",
    "restarting",
    "up_for_retry",
    "up_for_reschedule",
    "deferred",
)
"""States of a task instance that may still run; in a run that has ended, too."""
_ROWS = 1000
"""Rows in memory at a time."""
_Pair = tuple[str, str]


def judge(
    older_than: float,
    runs: Sequence[Sequence[str]] = (),
    prefixes: Sequence[str] = ("", ""),
    versions: Sequence[str] = (),
) -> list[str]:
    """Say what may go.

    :param older_than: seconds since the end of a run.
    :param runs: pairs of path segments, of a DAG and of a run.
    :param prefixes: what the segments begin with, before the ids.
    :param versions: digests of DAG versions.
    :return: for ``runs`` their verdicts, in their order; for ``versions`` those that are needed.
    """
    with create_session() as session:
        since = session.execute(select(func.now())).scalar_one() - timedelta(seconds=older_than)
        if versions:
            return sorted(_needed(session, versions, since))
        return _verdicts(session, [(dag, run) for dag, run in runs], (prefixes[0], prefixes[1]), since)


def _verdicts(
    session: Session, pairs: Sequence[_Pair], prefixes: tuple[str, str], since: datetime
) -> list[str]:
    ids: dict[_Pair, list[_Pair]] = {}
    readable: dict[_Pair, _Pair] = {}
    for pair in pairs:
        dag, run = (_text(segment, prefix) for segment, prefix in zip(pair, prefixes, strict=True))
        if _is_shortened(pair[0]) or _is_shortened(pair[1]):
            ids[pair] = _long_ids(session, pair, (dag, run), prefixes)
        else:
            readable[pair] = (dag, run)
            ids[pair] = [(dag, run)]
    split = _split_ids(session, readable.values())
    for pair, wanted in readable.items():
        ids[pair] += [
            found for found in split if found[0] == wanted[0] and found[1].startswith(f"{wanted[1]}/")
        ]
    states = _states(session, {found for several in ids.values() for found in several}, since)
    return [_together([states[found] for found in ids[pair] if found in states]) for pair in pairs]


def _together(states: list[str]) -> str:
    """Return the verdict on a folder that belongs to several runs, one or none."""
    if not states:
        return GONE
    return KEPT if KEPT in states else OLD


def _states(session: Session, pairs: Iterable[_Pair], since: datetime) -> dict[_Pair, str]:
    """Return which of these runs there are, and whether they ended long ago."""
    wanted = list(pairs)
    rows = session.execute(
        select(DagRun.dag_id, DagRun.run_id, DagRun.state, DagRun.end_date).where(
            tuple_(DagRun.dag_id, DagRun.run_id).in_(wanted)
        )
    )
    states = {
        (dag_id, run_id): OLD if state in ENDED and end is not None and end < since else KEPT
        for dag_id, run_id, state, end in rows
    }
    ended = [pair for pair, verdict in states.items() if verdict == OLD]
    busy = session.execute(
        select(TaskInstance.dag_id, TaskInstance.run_id)
        .where(
            tuple_(TaskInstance.dag_id, TaskInstance.run_id).in_(ended), TaskInstance.state.in_(UNFINISHED)
        )
        .distinct()
    )
    return {**states, **dict.fromkeys(((dag_id, run_id) for dag_id, run_id in busy), KEPT)}


def _split_ids(session: Session, pairs: Iterable[_Pair]) -> list[_Pair]:
    """Return the runs of these DAGs whose ids have a slash: a log's path is split there."""
    dags = {dag for dag, _ in pairs}
    rows = session.execute(
        select(DagRun.dag_id, DagRun.run_id).where(DagRun.dag_id.in_(dags), DagRun.run_id.contains("/"))
    )
    return [(dag_id, run_id) for dag_id, run_id in rows]


def _long_ids(session: Session, pair: _Pair, heads: _Pair, prefixes: tuple[str, str]) -> list[_Pair]:
    """Return the runs of whose ids these segments were made, at least one of which was shortened."""
    rows = session.execute(
        select(DagRun.dag_id, DagRun.run_id)
        .where(
            DagRun.dag_id.startswith(heads[0], autoescape=True),
            DagRun.run_id.startswith(heads[1], autoescape=True),
        )
        .execution_options(yield_per=_ROWS)
    )
    return [
        (dag_id, run_id)
        for dag_id, run_id in rows
        if pair[0] == safe_segment(prefixes[0] + dag_id)
        # A log's path is split where an id has a slash.
        and pair[1] in {safe_segment(prefixes[1] + part) for part in (run_id, run_id.split("/")[0])}
    ]


def _is_shortened(segment: str) -> bool:
    return SHORTENED in segment


def _text(segment: str, prefix: str) -> str:
    """Return the id that a segment was made of, or the beginning of one that was shortened."""
    if not _is_shortened(segment):
        return segment_text(segment).removeprefix(prefix)
    head = segment.rpartition(SHORTENED)[0]
    return unquote_to_bytes(head).decode("utf-8", "ignore").removeprefix(prefix)


def _needed(session: Session, digests: Sequence[str], since: datetime) -> set[str]:
    """Return the versions that may be asked for: by runs under way, new ones, or not long ago."""
    run_version = select(DagRun.bundle_version).where(DagRun.bundle_version.in_(digests))
    latest = (
        select(DagVersion.dag_id, func.max(DagVersion.version_number).label("number"))
        .group_by(DagVersion.dag_id)
        .subquery()
    )
    statements = (
        # Cleared or not: whoever touched it lately may do so again.
        run_version.where(
            or_(DagRun.state.not_in(ENDED), DagRun.end_date.is_(None), DagRun.end_date >= since)
        ),
        select(DagVersion.bundle_version)
        .join(TaskInstance, TaskInstance.dag_version_id == DagVersion.id)
        .where(DagVersion.bundle_version.in_(digests), TaskInstance.state.in_(UNFINISHED)),
        select(DagModel.bundle_version).where(DagModel.bundle_version.in_(digests), ~DagModel.is_stale),
        select(DagVersion.bundle_version)
        .join(
            latest, and_(latest.c.dag_id == DagVersion.dag_id, latest.c.number == DagVersion.version_number)
        )
        .join(DagModel, DagModel.dag_id == DagVersion.dag_id)
        .where(DagVersion.bundle_version.in_(digests), ~DagModel.is_stale),
        select(DagBundleModel.version).where(DagBundleModel.version.in_(digests)),
    )
    return {digest for statement in statements for digest in session.scalars(statement.distinct())}

"""DAGs of the environment: listed, and started by hand."""

from __future__ import annotations

from typing import Any

from airflow.api.common.trigger_dag import trigger_dag
from airflow.exceptions import DagRunAlreadyExists, ParamValidationError
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.errors import ParseImportError
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType
from sqlalchemy import select
from sqlalchemy.orm import Session

from airflow_provider_modal import names
from airflow_provider_modal.control import dag_code, times
from airflow_provider_modal.control.hints import did_you_mean
from airflow_provider_modal.control.times import iso
from airflow_provider_modal.errors import ConfigError, ModalflowError, NotFoundError


def list_dags() -> dict[str, Any]:
    """Return all DAGs that were ever parsed, and the files that could not be.

    :return: ``dags``, ``import_errors``, and ``parsed_version``: the digest of the last DAG version of which
        every file was parsed; None before the first one.
    """
    with create_session() as session:
        dags = session.scalars(select(DagModel).order_by(DagModel.dag_id)).all()
        errors = session.scalars(select(ParseImportError).order_by(ParseImportError.filename)).all()
        return {
            "dags": [
                {
                    "dag_id": dag.dag_id,
                    "file": dag.relative_fileloc,
                    "paused": dag.is_paused,
                    "stale": dag.is_stale,
                    "last_parsed": iso(dag.last_parsed_time),
                    "bundle_version": dag.bundle_version,
                    "schedule": dag.timetable_summary,
                    "next_run": iso(dag.next_dagrun_create_after),
                }
                for dag in dags
            ],
            "parsed_version": _parsed_version(session),
            "import_errors": [
                {"file": error.filename, "error": error.stacktrace, "at": iso(error.timestamp)}
                for error in errors
            ],
        }


def parsed() -> dict[str, Any]:
    """Return ``parsed_version`` alone: what somebody asks for who waits for a DAG file to be parsed."""
    with create_session() as session:
        return {"parsed_version": _parsed_version(session)}


def trigger(
    dag_id: str, run_id: str, conf: dict[str, Any] | None = None, logical_date: str | None = None
) -> dict[str, Any]:
    """Create a manual run; nothing happens if the DAG has a run of this id.

    :param logical_date: ISO 8601; None for a run without one.
    :return: ``run_id``, ``created``: whether it is new, and ``paused``: whether the DAG is, so that its runs
        stay as they are until it is unpaused.
    :raises NotFoundError: there is no such DAG, or its file is gone.
    :raises ConfigError: run id, configuration or date are not allowed.
    :raises ModalflowError: the DAG can't be run.
    """
    with create_session() as session:
        if _exists(session, dag_id, run_id):
            return _triggered(session, dag_id, run_id, created=False)
        _require(session, dag_id)
    try:
        _trigger(
            dag_id=dag_id,
            run_id=run_id,
            conf=conf or {},
            logical_date=None if logical_date is None else times.parsed(logical_date),
            triggered_by=DagRunTriggeredByType.CLI,
        )
    except DagRunAlreadyExists as error:
        with create_session() as session:
            if _exists(session, dag_id, run_id):
                # Somebody else, or an earlier delivery of this call, was faster.
                return _triggered(session, dag_id, run_id, created=False)
        raise ModalflowError(f"DAG {dag_id} can't be started: {error}") from None
    except (ParamValidationError, ValueError) as error:
        raise ConfigError(f"DAG {dag_id} can't be started like this: {error}") from None
    with create_session() as session:
        return _triggered(session, dag_id, run_id, created=True)


def _triggered(session: Session, dag_id: str, run_id: str, *, created: bool) -> dict[str, Any]:
    paused = session.scalar(select(DagModel.is_paused).where(DagModel.dag_id == dag_id))
    return {"run_id": run_id, "created": created, "paused": bool(paused)}


def _parsed_version(session: Session) -> str | None:
    version: str | None = session.scalar(
        select(DagBundleModel.version).where(DagBundleModel.name == names.BUNDLE_NAME)
    )
    return version


def _trigger(**arguments: Any) -> None:
    try:
        trigger_dag(**arguments)
    except (DagRunAlreadyExists, ParamValidationError):
        raise
    except Exception:
        # Such as a timetable that is one of the DAGs' own plugins: Airflow has no common error for these.
        if not dag_code.use_plugins():
            raise
        trigger_dag(**arguments)


def _exists(session: Session, dag_id: str, run_id: str) -> bool:
    statement = select(DagRun.id).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)
    return session.scalar(statement) is not None


def _require(session: Session, dag_id: str) -> None:
    """Check that the DAG is there and its file is in order."""
    dag = session.get(DagModel, dag_id)
    if dag is not None and dag.has_import_errors:
        raise ModalflowError(
            f"DAG {dag_id} can't be started: its file {dag.relative_fileloc} has an import error; to see it: "
            "modalflow dags list"
        )
    if dag is None or dag.is_stale:
        active = session.scalars(select(DagModel.dag_id).where(~DagModel.is_stale)).all()
        what = "does not exist" if dag is None else "is in no DAG file any more"
        raise NotFoundError(f"DAG {dag_id} {what}{did_you_mean(dag_id, active)}")

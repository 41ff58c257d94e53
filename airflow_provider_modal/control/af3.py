"""What the zygote of ``control`` containers imports with Airflow 3."""

from __future__ import annotations


def warm_up() -> None:
    """Import, in the zygote, everything that the operations need."""
    import airflow.api.common.trigger_dag
    import airflow.models.xcom
    import airflow.utils.db  # noqa: F401
    from airflow import settings

    import airflow_provider_modal.control.dag_code
    import airflow_provider_modal.control.dags
    import airflow_provider_modal.control.database
    import airflow_provider_modal.control.pausing
    import airflow_provider_modal.control.retention
    import airflow_provider_modal.control.runs
    import airflow_provider_modal.control.usage
    import airflow_provider_modal.control.xcoms  # noqa: F401

    if settings.engine is not None:
        # A connection that several processes believe to be theirs answers one with the other's rows.
        settings.engine.dispose()

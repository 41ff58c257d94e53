"""Every name of Airflow's that the package relies on although Airflow promises nothing about it.

Where a release of Airflow moves one, the test of this table fails first, and says who needs it.
"""

from __future__ import annotations

NEEDED = {
    "airflow.jobs.scheduler_job_runner:SchedulerJobRunner": {
        "scheduler/af3.py": (
            "_do_scheduling",
            "_execute",
            "_process_executor_events",
            "_set_exceeds_max_active_runs",
        ),
    },
    "airflow.dag_processing.manager:DagFileProcessorManager": {
        "scheduler/af3_parsing.py": ("_add_files_to_queue", "_add_new_files_to_queue", "_create_process"),
    },
    "airflow.executors.base_executor:BaseExecutor": {
        "executors/modal_executor.py": ("_process_workloads",),
    },
}
"""``module:attribute`` -> file of the package -> names that must be there."""

USED_IF_THERE = {
    "airflow.jobs.scheduler_job_runner:SchedulerJobRunner": {
        "scheduler/af3.py": (
            "_mark_backfills_complete",
            "_find_and_purge_task_instances_without_heartbeats",
            "_update_dag_run_state_for_paused_dags",
            "_handle_tasks_stuck_in_queued",
            "_update_asset_orphanage",
            "_remove_unreferenced_triggers",
            "_reap_stale_connection_tests",
        ),
    },
    "airflow.sdk.execution_time.supervisor:ActivitySubprocess": {
        "worker/af3.py": ("_register_pipe_readers",),
    },
    "airflow.providers.standard.operators.python:PythonVirtualenvOperator": {
        "venvs/operator_cache.py": ("_calculate_cache_hash", "_ensure_venv_cache_exists"),
    },
}
"""The same for names without which something is merely slower, or a duty is left out: present in the Airflow
that the package is made for."""

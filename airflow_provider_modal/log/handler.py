"""Airflow's reader of task logs, which knows that containers on Modal serve none."""

from __future__ import annotations

from typing import Any

from airflow.configuration import conf
from airflow.utils.log.file_task_handler import FileTaskHandler

from airflow_provider_modal.executors.owner import owner_of


class VolumeTaskHandler(FileTaskHandler):
    """Airflow's ``FileTaskHandler`` for an Airflow some of whose tasks run on Modal.

    Private name of Airflow that this relies on: ``_read_from_logs_server``. Without it a page waits for a
    host that is not there, and shows that as an error.
    """

    def _read_from_logs_server(self, ti: Any, worker_log_rel_path: str) -> Any:
        """Ask a task's host for its log, unless that is a container."""
        # A triggerer outside Modal serves the logs of its triggers.
        on_their_host = getattr(ti, "triggerer_job", None) and not conf.getboolean(
            "modal", "serverless", fallback=False
        )
        if on_their_host or owner_of(ti) is None:
            return super()._read_from_logs_server(ti, worker_log_rel_path)
        return [], []

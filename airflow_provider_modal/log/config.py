"""Airflow's logging with the logs of tasks on Modal in it.

    [logging]
    logging_config_class = airflow_provider_modal.log.config.LOGGING_CONFIG

The names are those that Airflow looks for in such a module. A deployment with a logging configuration of its
own imports ``REMOTE_TASK_LOG`` from here. What ``[logging] remote_logging`` sets up for the tasks of other
executors goes on.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from airflow.config_templates import airflow_local_settings as _airflow

from airflow_provider_modal.log.remote import VolumeLogIO

LOGGING_CONFIG: dict[str, Any] = deepcopy(_airflow.DEFAULT_LOGGING_CONFIG)
_handler = LOGGING_CONFIG["handlers"]["task"]
if _handler["class"] == "airflow.utils.log.file_task_handler.FileTaskHandler":
    _handler["class"] = "airflow_provider_modal.log.handler.VolumeTaskHandler"
REMOTE_TASK_LOG = VolumeLogIO(getattr(_airflow, "REMOTE_TASK_LOG", None))
DEFAULT_REMOTE_CONN_ID: str | None = getattr(_airflow, "DEFAULT_REMOTE_CONN_ID", None)

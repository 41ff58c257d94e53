"""How does Airflow's UI get what this provider adds to it?

Loaded by every Airflow process that loads plugins, so it imports nothing but what it registers.
"""

from __future__ import annotations

from typing import Any

from airflow_provider_modal.ui.links import FunctionCallLink

try:
    from airflow.sdk.plugins_manager import AirflowPlugin
except ImportError:  # before 3.2
    from airflow.plugins_manager import AirflowPlugin


class ModalPlugin(AirflowPlugin):
    """Registered as an entry point of group ``airflow.plugins``."""

    name = "modal"
    global_operator_extra_links: list[Any] = [FunctionCallLink()]

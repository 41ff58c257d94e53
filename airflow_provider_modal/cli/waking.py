"""How does a command that changed DAG files tell the scheduler?"""

from __future__ import annotations

from airflow_provider_modal.cli.output import note
from airflow_provider_modal.names import ResourceNames


def wake(resources: ResourceNames, reason: str) -> bool:
    """Ask for a scheduler run; that fails softly because the schedule finds the change as well."""
    from modal import exception

    from airflow_provider_modal import wakeup

    try:
        wakeup.request_run(resources, reason)
    except exception.Error as error:
        note(f"That is stored, but the scheduler could not be woken ({error}); its schedule will find it.")
        return False
    return True

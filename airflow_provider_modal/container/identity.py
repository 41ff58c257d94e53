"""Which container is this, and which function call does it work on?

Airflow fences task instances by (host name, user, pid) and takes a second start with equal values for a
repeated request. On Modal host names and users, and often pids, are the same in every container, so the host
name that Airflow sees is Modal's task id (``[core] hostname_callable``).
"""

from __future__ import annotations

import os
import socket

TASK_ID = "MODAL_TASK_ID"
"""Set by Modal in every container: https://modal.com/docs/guide/environment_variables."""


def container_id() -> str:
    """Return Modal's task id of this container; outside of one, the machine's host name."""
    return os.environ.get(TASK_ID) or socket.gethostname()


def get_hostname() -> str:
    """Return the host name under which Airflow knows this container (``[core] hostname_callable``)."""
    return container_id()


def call_id() -> str | None:
    """Return the id of the function call that this container works on; None outside of one."""
    import modal

    return modal.current_function_call_id()

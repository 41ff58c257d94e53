"""How do Airflow's own connections to the database notice that it went away?

libpq waits for as long as TCP does: minutes for a server that does not answer, hours for one that fell
silent. Airflow passes ``CONNECT_ARGUMENTS`` on (``database.sql_alchemy_connect_args``, which names a dict).
What the URL says itself wins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from airflow_provider_modal import airflow_settings
from airflow_provider_modal.db.connect import CONNECT_TIMEOUT
from airflow_provider_modal.db.url import parameter_names

# More patient than the scheduler's lock: a task may outlive a short break of the network.
_ARGUMENTS: dict[str, Any] = {
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives": 1,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


def connect_arguments(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return what psycopg2 gets beside the URL of this container's database."""
    try:
        said = parameter_names(airflow_settings.database_url(environ))
    except KeyError:
        said = frozenset()
    return {name: value for name, value in _ARGUMENTS.items() if name not in said}


CONNECT_ARGUMENTS = connect_arguments()
"""Read by Airflow when it makes its engine; the URL is in the environment by then."""

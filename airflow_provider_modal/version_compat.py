"""Which Airflow is this, and what can it do?

The only place that looks at Airflow's version. Logic asks for a feature flag; code that differs per major
version lives in the ``af2``/``af3`` adapters of ``worker`` and ``scheduler``.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version


@cache
def airflow_version() -> str:
    """Return the installed Airflow's version, without importing Airflow."""
    return version("apache-airflow")


def airflow_major() -> int:
    """Return Airflow's major version: 2 or 3."""
    return int(airflow_version().split(".", 1)[0])


def adapter(package: str) -> str:
    """Return the module of ``package`` that speaks this Airflow's major version: ``{package}.af3``."""
    return f"{package}.af{airflow_major()}"

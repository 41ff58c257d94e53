"""What does Airflow need to know about this provider? The content of ``provider.yaml``, nothing else."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from airflow_provider_modal import __version__


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata (entry point ``apache_airflow_provider``)."""
    text = files("airflow_provider_modal").joinpath("provider.yaml").read_text(encoding="utf-8")
    return {**yaml.safe_load(text), "versions": [__version__]}

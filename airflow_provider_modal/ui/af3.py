"""Airflow 3's UI and API."""

from __future__ import annotations

from typing import Any


def app() -> Any:
    """Return Airflow's ASGI app: UI and API, never the execution API, which hands out secrets to tasks."""
    from airflow.api_fastapi.app import create_app

    return create_app(apps="core")

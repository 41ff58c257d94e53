"""An executor that runs on the scheduler's side only: no Modal, no database."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from airflow_provider_modal import config

if TYPE_CHECKING:
    from tests.support.recorded_executor import Executor

# Before Airflow is imported: it writes its configuration file into its home.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="modalflow-unit-airflow-"))
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")

DATABASE = "postgresql://u:p@host/db"
SILENT_AFTER = 60.0


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process as one of environment ``prod``, with a second worker profile ``gpu``."""
    data = {"database": {"connection_string": DATABASE}, "workers": {"gpu": {"gpu": "A10G", "timeout": 7200}}}
    deployed = config.parse(data, source="config.yaml", environ={})
    monkeypatch.setenv("MODALFLOW_SETTINGS", json.dumps(deployed.to_settings()))
    monkeypatch.setenv("AIRFLOW__MODAL__ENVIRONMENT", "prod")
    monkeypatch.setenv("AIRFLOW__MODAL__SERVERLESS", "True")
    monkeypatch.setenv("AIRFLOW__MODAL__SILENT_AFTER", str(SILENT_AFTER))
    # There is no database here; what it contributes is among the integration tests.
    monkeypatch.setattr("airflow_provider_modal.executors.database.open_cancellations", lambda seconds: [])
    return monkeypatch


@pytest.fixture
def executor(settings: pytest.MonkeyPatch) -> Iterator[Executor]:
    """A started executor with a database that is a few lists."""
    from tests.support.recorded_executor import Executor

    executor = Executor(parallelism=4)
    executor.job_id = 7
    for name, instead in {
        "open_callbacks": lambda: executor.open_callbacks,
        "return_callback": executor.returned.append,
        "fail_connection_test": lambda test_id, reason: executor.failed_tests.append((test_id, reason)),
    }.items():
        settings.setattr(f"airflow_provider_modal.executors.database.{name}", instead)
    executor.start()
    yield executor
    executor.terminate()

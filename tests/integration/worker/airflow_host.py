"""An Airflow beside a test: a warm zygote on a database, which queues tasks as a scheduler does."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from airflow_provider_modal.container.zygote import Zygote
from airflow_provider_modal.names import BUNDLE_NAME

HERE = Path(__file__).parent
DAGS = HERE / "dags"


@dataclass
class AirflowHost:
    """The zygote, and a folder for its files."""

    zygote: Zygote
    root: Path
    database: str

    def call(self, function: str, **args: Any) -> Any:
        """Call a function of ``airflow_seed``."""
        outcome = self.zygote.spawn(f"airflow_seed:{function}", args).wait(60)
        assert outcome is not None and outcome.error is None, outcome
        return outcome.result


@contextmanager
def database_of(server_url: str, template: str) -> Iterator[str]:
    """A migrated database for a module."""
    name = f"worker_{secrets.token_hex(4)}"
    admin = psycopg2.connect(server_url)
    admin.autocommit = True
    try:
        admin.cursor().execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        yield f"{server_url.rpartition('/')[0]}/{name}"
        admin.cursor().execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        admin.close()


@contextmanager
def airflow_host(database: str, root: Path) -> Iterator[AirflowHost]:
    """Airflow on a database, with the DAG bundle in a local folder."""
    bundle = {
        "name": BUNDLE_NAME,
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(DAGS)},
    }
    settings = {
        "AIRFLOW_HOME": str(root / "airflow"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.replace("postgresql:", "postgresql+psycopg2:", 1),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": "",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_ENABLED": "False",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__HOSTNAME_CALLABLE": "airflow_provider_modal.container.identity.get_hostname",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(root / "logs"),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "5",
        "MODAL_TASK_ID": "ta-worker",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        for name, value in settings.items():
            patch.setenv(name, value)
        zygote = Zygote.start("airflow_provider_modal.worker.af3:warm_up")
    try:
        zygote.ready(120)
        yield AirflowHost(zygote, root, database)
    finally:
        zygote.stop()

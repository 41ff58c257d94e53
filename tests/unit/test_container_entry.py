"""Does importing the entry module do as little as it promises, and as much?"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from airflow_provider_modal import airflow_settings
from airflow_provider_modal.config import EnvironmentConfig
from airflow_provider_modal.container import identity, zygote

IMPORT = """
import json, os, sys, threading
from airflow_provider_modal.container import entry
print(json.dumps({
    "heavy": sorted({"airflow", "modal", "psycopg2", "sqlalchemy"} & set(sys.modules)),
    "threads": threading.active_count(),
    "zygote": entry._started is not None,
    "home": os.environ.get("AIRFLOW_HOME"),
}))
if entry._started is not None:
    entry._started.stop()
"""


def imported(**environ: str) -> dict[str, object]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("MODALFLOW", "AIRFLOW"))
    }
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], env={**clean, **environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def deployed(role: str) -> dict[str, str]:
    return airflow_settings.function_environment(EnvironmentConfig("postgresql://x@h/d"), "dev", role)


@pytest.mark.parametrize("environ", [{}, deployed("tick"), {**deployed("worker"), zygote.MARK: "1"}])
def test_nothing_starts_where_airflow_does_not_run(environ: dict[str, str]) -> None:
    assert imported(**environ) == {"heavy": [], "threads": 1, "zygote": False, "home": None}


def test_worker_completes_settings_and_starts_the_zygote() -> None:
    found = imported(**deployed("worker"))
    assert found["zygote"] and str(found["home"]).endswith("modalflow/airflow")
    assert found["heavy"] == []


def test_host_name_is_the_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(identity.TASK_ID, "ta-1")
    assert identity.get_hostname() == identity.container_id() == "ta-1"
    monkeypatch.delenv(identity.TASK_ID)
    assert identity.get_hostname()

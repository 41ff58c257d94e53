"""A container builds the execution API for its own client only, and that one still finds every route."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

LOOK = """
import json
from airflow.api_fastapi.execution_api import versions
from airflow.sdk.api.client import API_VERSION
from airflow_provider_modal.container.execution_api import leave_out_old_versions

before = [version.value for version in versions.bundle]
leave_out_old_versions()
from airflow.api_fastapi.execution_api.app import InProcessExecutionAPI
app = InProcessExecutionAPI().app
app._cadwyn_initialize() if hasattr(app, "_cadwyn_initialize") else None
after = [version.value for version in versions.bundle]
print(json.dumps({"before": before, "after": after, "client": API_VERSION}))
"""


def test_only_versions_that_are_needed_are_built(tmp_path: Path) -> None:
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env=environ, capture_output=True, text=True, check=True, timeout=120
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert "longer" not in done.stderr
    assert found["client"] in found["after"]
    assert found["after"] == found["before"][: len(found["after"])]
    assert len(found["after"]) < len(found["before"])

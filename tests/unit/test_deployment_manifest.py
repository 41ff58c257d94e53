from __future__ import annotations

import json
import subprocess
import sys

import pytest

from airflow_provider_modal import __version__, deployment
from airflow_provider_modal.app import describe
from airflow_provider_modal.config import CALL_MARGIN_SECONDS, EnvironmentConfig, ImageConfig, WorkerProfile
from airflow_provider_modal.wire import WIRE_VERSION

CONFIG = EnvironmentConfig(
    "postgresql://user:hunter2@host/db",
    workers={"default": WorkerProfile(), "gpu": WorkerProfile(gpu="A10G", timeout=7200, secrets=("hf",))},
    image=ImageConfig(secrets=("registry",)),
    airflow={"smtp.smtp_password": "hunter3", "core.max_active_runs_per_dag": "4"},
    fernet_key="hunter4",
)


def test_it_comes_back_as_it_was() -> None:
    manifest = describe(CONFIG, "prod")

    assert deployment.Manifest.from_json(manifest.to_json()) == manifest


def test_it_says_what_runs_there() -> None:
    manifest = describe(CONFIG, "prod")

    assert (manifest.package, manifest.wire, manifest.volume_path) == (__version__, WIRE_VERSION, "/vol")
    assert manifest.profiles["gpu"] == deployment.DeployedProfile(
        function="execute_task_gpu",
        secrets=("registry", "hf", "airflow-secrets-prod"),
        timeout=7200 + CALL_MARGIN_SECONDS,
    )
    assert (
        EnvironmentConfig.from_settings(json.loads(manifest.to_json())["settings"]).workers == CONFIG.workers
    )


def test_it_holds_no_secret_value() -> None:
    text = describe(CONFIG, "prod").to_json()

    assert "hunter" not in text
    assert "smtp.smtp_password" in text


def test_fields_of_a_later_release_do_not_disturb() -> None:
    manifest = describe(CONFIG, "prod")
    data = {**json.loads(manifest.to_json()), "colour": "blue"}

    assert deployment.Manifest.from_json(json.dumps(data)) == manifest


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "profiles": []}'])
def test_what_is_no_manifest_is_told(text: str) -> None:
    with pytest.raises(ValueError):
        deployment.Manifest.from_json(text)


def test_who_only_reads_it_does_not_load_what_deploys() -> None:
    """The executor reads it in a scheduler of the user's own."""
    code = (
        "import sys\n"
        "from airflow_provider_modal import deployment\n"
        "from airflow_provider_modal.executors import deployed\n"
        "sys.exit(' '.join(m for m in sys.modules if m in ('modal', 'airflow_provider_modal.app')) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

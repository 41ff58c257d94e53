"""What does a `create` change in what is deployed?"""

from __future__ import annotations

from dataclasses import replace

from airflow_provider_modal import app
from airflow_provider_modal.config import EnvironmentConfig, SchedulerConfig, UiUser, WorkerProfile
from airflow_provider_modal.provision_plan import changes

CONFIG = EnvironmentConfig("postgresql://u:hush@h/d", airflow={"core.a": "hush-1", "core.b": "1"})


def test_what_is_the_same_is_no_change() -> None:
    assert changes(None, CONFIG) == []
    assert changes(app.describe(CONFIG, "dev"), CONFIG) == []


def test_settings_profiles_options_and_versions_are_compared_without_their_secrets() -> None:
    deployed = replace(app.describe(CONFIG, "dev"), airflow="3.0.0")
    now = replace(
        CONFIG,
        scheduler=SchedulerConfig(interval_seconds=30),
        workers={"default": WorkerProfile(), "gpu": WorkerProfile(gpu="T4")},
        ui_users={"alice": UiUser("hush-2", "op")},
        airflow={"core.b": "hush-3", "core.c": "hush-4"},
    )
    found = {change["what"]: (change["deployed"], change["now"]) for change in changes(deployed, now)}
    assert found.pop("airflow")[0] == "3.0.0"
    assert found["scheduler.interval_seconds"] == (60, 30)
    assert found["workers.gpu.gpu"] == (None, "T4")
    assert found["ui_users.alice"] == (None, "op")
    assert (found["airflow.core.a"], found["airflow.core.c"]) == (("set", None), (None, "set"))
    assert "airflow.core.b" not in found
    assert "hush" not in str(found)

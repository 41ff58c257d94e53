"""The same image that the provider makes (`airflow_provider_modal.image`), and a memory snapshot: each an app
of its own, because a build that fails must not take the other checks with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import modal

from cloud import ground

NAME = os.environ.get("CLOUD_CHECK_NAME", "cloud-check")
AIRFLOW_IMAGE = "apache/airflow:3.3.2-python3.12"
ADDED = "cowsay"
"""A small package without dependencies that the image doesn't have."""
AIRFLOW = f"{NAME}-airflow"
SNAPSHOT = f"{NAME}-snapshot"

airflow_app = modal.App(AIRFLOW)
airflow_image = (
    modal.Image.from_registry(AIRFLOW_IMAGE, setup_dockerfile_commands=["USER root"])
    .entrypoint([])
    # Asking for what is there must not install it again somewhere else.
    .uv_pip_install("apache-airflow==3.3.2", ADDED)
)


@airflow_app.function(image=airflow_image, env={"CLOUD_CHECK_NAME": NAME}, timeout=120)
def airflow_inside() -> dict[str, Any]:
    """Where Airflow and the added package are."""
    places = {}
    for module in ("airflow", ADDED):
        code = f"import importlib.util as u; print(u.find_spec({module!r}).origin)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        places[module] = done.stdout.strip() or "missing"
    return {
        **ground.identity(),
        "path": os.environ.get("PATH", ""),
        "executable": sys.executable,
        "places": places,
        "airflow_command": subprocess.run(
            ["sh", "-c", "command -v airflow"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }


snapshot_app = modal.App(SNAPSHOT)


@snapshot_app.cls(
    env={"CLOUD_CHECK_NAME": NAME}, enable_memory_snapshot=True, single_use_containers=True, timeout=120
)
class Snapshotted:
    """Starts a zygote before the snapshot is taken and asks it after the restore."""

    @modal.enter(snap=True)
    def start(self) -> None:
        """Part of what the snapshot holds."""
        self.zygote = ground.start_zygote()
        self.first_task = os.environ.get("MODAL_TASK_ID", "")

    @modal.method()
    def ask(self) -> dict[str, Any]:
        """Whether the zygote of before the snapshot still forks."""
        return {
            **ground.ask_zygote(self.zygote),
            "restored": self.first_task != os.environ.get("MODAL_TASK_ID", ""),
        }

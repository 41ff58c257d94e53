"""Containers that do with their volumes what a test tells them; `held` keeps things alive between calls."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import modal

app = modal.App("data-mounts")
shared = modal.Volume.from_name("data-shared", create_if_missing=True, version=2)
legacy = modal.Volume.from_name("data-legacy", create_if_missing=True, version=1)
# Without namespaces a mount is found through a variable that names it.
places = modal.Secret.from_dict({"VOL": "/vol", "PART": "/deep/part", "LEGACY": "/legacy"})

held: dict[str, Any] = {}


def run(code: str, values: dict[str, Any]) -> Any:
    """Run `code` with the volumes, their paths and `values` as variables; what it assigns to `result` is the
    answer."""
    names: dict[str, Any] = {
        "vol": Path(os.environ["VOL"]),
        "part": Path(os.environ["PART"]),
        "legacy_path": Path(os.environ["LEGACY"]),
        "shared": shared,
        "legacy": legacy,
        "held": held,
        "result": None,
    } | values
    exec("import os, subprocess, sys\n" + code, names)
    return names["result"]


@app.function(volumes={"/vol": shared}, secrets=[places], max_containers=1, scaledown_window=60)
def one(code: str, values: dict[str, Any]) -> Any:
    return run(code, values)


@app.function(volumes={"/vol": shared}, secrets=[places], max_containers=1, scaledown_window=60)
def two(code: str, values: dict[str, Any]) -> Any:
    return run(code, values)


@app.function(volumes={"/vol": shared}, secrets=[places], single_use_containers=True)
def brief(code: str, values: dict[str, Any]) -> Any:
    return run(code, values)


@app.function(volumes={"/vol": shared.with_mount_options(read_only=True)}, secrets=[places], max_containers=1)
def read_only(code: str, values: dict[str, Any]) -> Any:
    return run(code, values)


@app.function(
    volumes={"/deep/part": shared.with_mount_options(sub_path="parts/mine"), "/legacy": legacy},
    secrets=[places],
    max_containers=1,
)
def part(code: str, values: dict[str, Any]) -> Any:
    return run(code, values)

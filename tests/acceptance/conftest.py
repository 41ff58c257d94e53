"""Fixtures of the stories: an environment that is created once a module, and a recorder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from local_modal.testing import LocalModal
from tests.acceptance.deployment import Deployment, write_config
from tests.acceptance.recorder import Recorder


@pytest.fixture(scope="module")
def module_database(postgres_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of an empty database for the module."""
    name = f"acceptance_{request.module.__name__.rpartition('.')[2]}"
    admin = psycopg2.connect(postgres_url)
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        cursor.execute(f"CREATE DATABASE {name}")
        yield f"{postgres_url.rpartition('/')[0]}/{name}"
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    admin.close()


@pytest.fixture(scope="module")
def deployment(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An environment, created by the command, on a local Modal server of its own."""
    folder = tmp_path_factory.mktemp("deployment")
    config = write_config(folder / "config.yaml", module_database)
    with LocalModal(state_dir=folder / "modal") as modal:
        deployment = Deployment("test", modal, config)
        deployment.modalflow("create", "--config", str(config))
        yield deployment


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    """Told by user code what it does."""
    recorder = Recorder()
    yield recorder
    recorder.close()


@pytest.fixture(scope="module")
def recorded(
    deployment: Deployment, recorder: Recorder, tmp_path_factory: pytest.TempPathFactory
) -> Deployment:
    """The environment with the DAGs of ``dags/recorded.py``."""
    source = (Path(__file__).parent / "dags" / "recorded.py").read_text()
    path = tmp_path_factory.mktemp("dags") / "recorded.py"
    path.write_text(source.replace("RECORDER_PORT", str(recorder.port)))
    deployment.add_dag(path, "recorded_chain", "recorded_single")
    return deployment

"""Fixtures of the stories: an environment that most of them share, and a recorder."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest

from airflow_provider_modal.names import ResourceNames
from tests.acceptance.deployment import Deployment, run, write_config
from tests.acceptance.modal_target import CLOUD, environment_name, modal_server
from tests.acceptance.recorder import Recorder
from tests.support.wheels import add_wheel

FAULTS = "needs faults, which only the local Modal server can make"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On Modal itself, skip what only a local Modal server can do."""
    for item in items:
        for marker in item.iter_markers("faults") if CLOUD else ():
            item.add_marker(pytest.mark.skip(reason=marker.kwargs.get("reason", FAULTS)))


@contextmanager
def new_database(server_url: str, name: str) -> Iterator[str]:
    """URL of an empty database, dropped afterwards."""
    admin = psycopg2.connect(server_url)
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
        try:
            yield urlsplit(server_url)._replace(path=f"/{name}").geturl()
        finally:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    admin.close()


@pytest.fixture(scope="session")
def acceptance_database(postgres_url: str) -> Iterator[str]:
    """URL of an empty database."""
    with new_database(postgres_url, f"acceptance_{secrets.token_hex(3)}") as url:
        yield url


@pytest.fixture(scope="session")
def deployment(acceptance_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An environment, created by the command; on a local Modal server of its own, or on Modal.

    On the local server its workers have the user's Secret ``base-token``, and there is another one,
    ``team-token``; packages come from the folder ``wheels/`` of its Volume alone.
    """
    folder = tmp_path_factory.mktemp("deployment")
    image: dict[str, Any] = {}
    workers: dict[str, Any] = {"max_containers": 3, "scaledown_window": 120}
    with modal_server(folder / "modal") as local:
        if local is not None:
            for name, variable in (("base-token", "BASE_TOKEN=base"), ("team-token", "TEAM_TOKEN=team")):
                run([sys.executable, "-m", "modal", "secret", "create", name, variable], local.env)
            workers["secrets"] = ["base-token"]
            put_wheels(folder / "wheels", ResourceNames("test").volume, local.env)
            image["env"] = {"UV_NO_INDEX": "1", "UV_FIND_LINKS": "/vol/wheels"}
        config = write_config(
            folder / "config.yaml",
            acceptance_database,
            workers={"default": workers},
            image=image,
            airflow={"modal.container_lost_after": 15},
            xcom={"threshold_bytes": 0},
        )
        deployment = Deployment(environment_name("test"), local, config)
        try:
            deployment.modalflow("create", "--config", str(config))
            yield deployment
        finally:
            deployment.clean_up()


def put_wheels(folder: Path, volume: str, environ: Mapping[str, str]) -> None:
    """Make a Volume with two packages on it, before anything uses it."""
    folder.mkdir()
    files = {"greeter/__init__.py": "DAG_ID = 'packaged'\n", "greeter/cli.py": "def main(): print('hello')\n"}
    add_wheel(folder, "greeter", "1.0", files, commands={"greet": "greeter.cli:main"})
    add_wheel(folder, "tone", "1.2", {"tone.py": "TONE = 'bright'\n"})
    modal = [sys.executable, "-m", "modal", "volume"]
    run([*modal, "create", "--version", "2", volume], environ)
    run([*modal, "put", volume, str(folder), "/wheels"], environ)


@pytest.fixture(scope="session")
def recorder() -> Iterator[Recorder]:
    """Told by user code what it does."""
    recorder = Recorder()
    yield recorder
    recorder.close()


@pytest.fixture(scope="session")
def recorded(
    deployment: Deployment, recorder: Recorder, tmp_path_factory: pytest.TempPathFactory
) -> Deployment:
    """The environment with the DAGs of ``dags/recorded.py``."""
    source = (Path(__file__).parent / "dags" / "recorded.py").read_text()
    path = tmp_path_factory.mktemp("dags") / "recorded.py"
    path.write_text(source.replace("RECORDER_PORT", str(recorder.port)))
    deployment.add_dag(path, "recorded_chain", "recorded_single")
    return deployment

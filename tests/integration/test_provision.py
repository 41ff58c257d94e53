"""Environments come into being and go, with real containers and a real database."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import modal
import psycopg2
import pytest
from cryptography.fernet import Fernet

from airflow_provider_modal import app, database_steps, deployment, environment_secrets, names, provision
from airflow_provider_modal.config import EnvironmentConfig, ImageConfig, SchedulerConfig
from airflow_provider_modal.control.client import ControlClient
from airflow_provider_modal.db.connect import application_name, connect
from airflow_provider_modal.db.lock import AdvisoryLock
from airflow_provider_modal.errors import ConfigError, ModalflowError, NotFoundError, UnreachableError
from airflow_provider_modal.names import ResourceNames
from airflow_provider_modal.volume.files import VolumeFiles
from local_modal.testing import LocalModal
from tests.support.modal_env import using

KEYS = ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__API__SECRET_KEY")
CONNECTION = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"


@pytest.fixture(scope="module", autouse=True)
def _modal(local_modal: LocalModal) -> Iterator[None]:
    with using(local_modal):
        yield


@pytest.fixture
def resources() -> Iterator[ResourceNames]:
    made = ResourceNames(f"prov-{uuid.uuid4().hex[:8]}")
    yield made
    try:
        provision.destroy(made.env)
    except NotFoundError:
        pass  # the test has destroyed it


def configured(database: str, **changes: Any) -> EnvironmentConfig:
    # An hour: no tick comes in between.
    return replace(EnvironmentConfig(database, scheduler=SchedulerConfig(interval_seconds=3600)), **changes)


def own_key() -> str:
    return base64.urlsafe_b64encode(b"y" * 32).decode()


def secret(server: LocalModal, name: str) -> dict[str, str]:
    """The values that the server keeps; no client can read them back."""
    secret_id = modal.Secret.from_name(name).hydrate().object_id
    values: dict[str, str] = json.loads((server.state_dir / "secrets" / secret_id).read_text())
    return values


def revision(database: str) -> str:
    connection = psycopg2.connect(database)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT version_num FROM alembic_version")
            [(found,)] = cursor.fetchall()
            return str(found)
    finally:
        connection.close()


UNBUILDABLE = ImageConfig(pip=("no-such-package==0.0.1",))
MISSING_SECRET = ImageConfig(secrets=("no-such-secret",))


@contextmanager
def a_run_of(resources: ResourceNames, database: str) -> Iterator[AdvisoryLock]:
    """A scheduler run of the environment, as far as others can tell."""
    with AdvisoryLock(database, application_name=application_name(resources.env)) as lock:
        lock.acquire()
        yield lock


@pytest.mark.slow
def test_an_environment_from_its_beginning_to_its_end(
    local_modal: LocalModal, resources: ResourceNames, fresh_database: str
) -> None:
    """One story, because every ``create`` starts a container that has Airflow to import."""
    begun = provision.CreateSummary(resources.env)
    with pytest.raises(UnreachableError) as failed:
        provision.create(
            configured("postgresql://airflow:hunter2@127.0.0.1:1/airflow", airflow={"core.first": "1"}),
            resources.env,
            summary=begun,
        )
    _tells_what_failed_and_what_exists(str(failed.value), begun, resources)
    assert begun.fernet_key
    before = secret(local_modal, resources.secrets)
    _holds_keys_of_its_own(before, str(begun.fernet_key))

    told: list[tuple[str, str]] = []
    with a_run_of(resources, fresh_database) as run:

        def progress(step: str, status: str, detail: str | None) -> None:
            told.append((step, status))
            if status == "waiting":
                assert "scheduler run to end, at most" in str(detail)
                run.release()

        done = provision.create(
            configured(fresh_database, airflow={"core.first": "1"}), resources.env, progress=progress
        )
    assert done.steps == {
        "image": "unchanged",
        "volume": "unchanged",
        "state": "unchanged",
        "secrets": "updated",
        "app": "updated",
        "database": "unchanged",
        "schema": "updated",
        "manifest": "updated",
    }
    assert ("schema", "waiting") in told
    told.remove(("schema", "waiting"))
    assert told == [t for step, status in done.steps.items() for t in ((step, "started"), (step, status))]
    assert done.fernet_key is None
    assert deployment.read(VolumeFiles.open(resources)) == done.manifest
    assert revision(fresh_database)

    assert done.warnings == []
    _encrypted_with_another_key(fresh_database)
    details: dict[str, str | None] = {}
    changed = configured(
        fresh_database + "?connect_timeout=7", airflow={"core.second": "2"}, fernet_key=own_key()
    )
    with a_run_of(resources, fresh_database):
        # With nothing to migrate it does not wait for the run, which does not end.
        again = provision.create(
            changed,
            resources.env,
            progress=lambda step, status, detail: details.update({step: detail}),
        )
    assert again.steps == {**done.steps, "schema": "unchanged"}
    [warning] = again.warnings
    assert "can't be read (found: 1)" in warning and "keys.fernet_key" in warning
    assert "core.first" in str(details["secrets"]), "Modal keeps what was written once"
    assert "keys.fernet_key was not used" in str(details["secrets"])
    after = secret(local_modal, resources.secrets)
    assert {key: after[key] for key in KEYS} == {key: before[key] for key in KEYS}
    assert after["AIRFLOW__CORE__SECOND"] == "2"
    assert after[CONNECTION].startswith("postgresql+psycopg2://")
    assert after[CONNECTION].endswith("?connect_timeout=7")
    for_workers = secret(local_modal, resources.worker_secrets)
    assert for_workers["AIRFLOW__CORE__SECOND"] == "2"
    assert not {CONNECTION, *KEYS} & for_workers.keys()

    _raises_here_what_failed_there(resources)
    _is_left_alone_when_its_next_image_fails(local_modal, resources)

    other = ResourceNames(f"{resources.env}-b")
    with pytest.raises(ConfigError, match=f"belongs to environment '{resources.env}'"):
        provision.create(configured(fresh_database), other.env)
    with pytest.raises(ConfigError, match=f"belongs to environment '{resources.env}'"):
        provision.destroy(other.env, drop_schema=True)
    assert revision(fresh_database)
    gone = provision.destroy(other.env)
    assert gone.pop("database") == "kept"
    assert set(gone.values()) == {"deleted"}

    assert set(provision.destroy(resources.env, drop_schema=True).values()) == {"deleted"}
    with pytest.raises(psycopg2.errors.UndefinedTable):
        revision(fresh_database)
    _nothing_is_left(resources)
    with pytest.raises(NotFoundError, match="does not exist"):
        provision.destroy(resources.env)


def _encrypted_with_another_key(database: str) -> None:
    word = Fernet(own_key()).encrypt(b"word").decode()
    with connect(database, application_name="test") as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO variable (key, val, is_encrypted) VALUES ('v', %s, true)", (word,))


def _tells_what_failed_and_what_exists(
    text: str, summary: provision.CreateSummary, resources: ResourceNames
) -> None:
    assert "127.0.0.1" in text and "hunter2" not in text
    assert resources.app in text and "Running create again continues" in text
    assert summary.steps == {
        "image": "unchanged",
        "volume": "created",
        "state": "created",
        "secrets": "created",
        "app": "created",
        "database": "failed",
    }
    assert provision.exists(resources.env)
    with pytest.raises(NotFoundError, match="create"):
        deployment.read(VolumeFiles.open(resources))


def _holds_keys_of_its_own(values: dict[str, str], told: str) -> None:
    assert len({values[key] for key in KEYS}) == 3
    assert values["AIRFLOW__CORE__FERNET_KEY"] == told
    assert len(base64.urlsafe_b64decode(told)) == 32


def _is_left_alone_when_its_next_image_fails(server: LocalModal, resources: ResourceNames) -> None:
    before = secret(server, resources.secrets), secret(server, resources.worker_secrets)
    for image, says in ((UNBUILDABLE, "could not be built"), (MISSING_SECRET, "no Secret no-such-secret")):
        broken = configured("postgresql://u@127.0.0.1:1/x", image=image, airflow={"core.third": "3"})
        with pytest.raises(ModalflowError, match=says) as failed:
            provision.create(broken, resources.env)
        assert "Nothing was changed on Modal" in str(failed.value)
    assert (secret(server, resources.secrets), secret(server, resources.worker_secrets)) == before
    assert provision.exists(resources.env)


def _raises_here_what_failed_there(resources: ResourceNames) -> None:
    control = ControlClient(resources)
    with pytest.raises(NotFoundError, match="no_such_dag"):
        control.call("runs.show", dag_id="no_such_dag", run_id="x")
    with pytest.raises(ModalflowError, match="no-such-operation"):
        control.call("no-such-operation")
    with pytest.raises(UnreachableError, match=r"no answer within 0\.001 s.*modal app logs"):
        ControlClient(resources, timeout=0.001).call("check_database")


def _nothing_is_left(resources: ResourceNames) -> None:
    assert not provision.exists(resources.env)
    for kind, name in (
        (modal.Volume, resources.volume),
        (modal.Dict, resources.state_dict),
        (modal.Queue, resources.events_queue),
        (modal.Secret, resources.secrets),
        (modal.Secret, resources.worker_secrets),
    ):
        with pytest.raises(modal.exception.NotFoundError):
            kind.from_name(name).hydrate()


@pytest.mark.parametrize("key", ["", "short", "not base64!", base64.b64encode(b"z" * 31).decode()])
def test_a_key_that_is_none_is_refused_before_anything_is_made(resources: ResourceNames, key: str) -> None:
    with pytest.raises(ConfigError, match=r"keys\.fernet_key") as refused:
        provision.create(configured("postgresql://u@127.0.0.1:1/x", fernet_key=key), resources.env)

    assert not key or key not in str(refused.value)
    with pytest.raises(NotFoundError):
        provision.destroy(resources.env)


def test_a_name_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(ConfigError, match="not allowed"):
        provision.create(configured("postgresql://u@127.0.0.1:1/x"), "../prod")
    with pytest.raises(ConfigError, match="not allowed"):
        provision.destroy("Prod!")


@pytest.mark.parametrize(
    ("image", "says"), [(UNBUILDABLE, "no-such-package"), (MISSING_SECRET, "no-such-secret")], ids=str
)
def test_an_image_that_fails_leaves_nothing_behind(
    resources: ResourceNames, image: ImageConfig, says: str
) -> None:
    summary = provision.CreateSummary(resources.env)
    with pytest.raises(ModalflowError, match=says) as failed:
        provision.create(
            configured("postgresql://u@127.0.0.1:1/x", image=image), resources.env, summary=summary
        )
    assert "Nothing was changed on Modal" in str(failed.value)
    assert (summary.fernet_key, summary.steps) == (None, {"image": "failed"})
    _nothing_is_left(resources)


def test_a_key_of_the_configuration_is_taken(local_modal: LocalModal, resources: ResourceNames) -> None:
    config = configured("postgresql://u@127.0.0.1:1/x", fernet_key=own_key())
    made: list[str] = []
    status, detail = environment_secrets.put(config, resources, made.append)
    assert (status, detail, made) == ("created", "with the Fernet key of the configuration", [])
    assert secret(local_modal, resources.secrets)["AIRFLOW__CORE__FERNET_KEY"] == own_key()


def test_a_key_that_was_stored_is_told_although_modals_answer_was_lost(
    local_modal: LocalModal, resources: ResourceNames
) -> None:
    config = configured("postgresql://u@127.0.0.1:1/x")
    made: list[str] = []
    with ExitStack() as faults:

        def key_made(key: str) -> None:
            made.append(key)
            # What the SDK's repetition is told when the first answer was lost: the Secret exists.
            faults.enter_context(
                local_modal.fault("twice", rpc="SecretGetOrCreate", forget_key=True, count=1)
            )

        status, _ = environment_secrets.put(config, resources, key_made)
    assert status == "created"
    assert [secret(local_modal, resources.secrets)["AIRFLOW__CORE__FERNET_KEY"]] == made
    assert environment_secrets.put(config, resources, made.append)[0] == "updated"
    assert len(made) == 1


def test_an_interrupted_destruction_is_completed(resources: ResourceNames) -> None:
    modal.Dict.from_name(resources.state_dict, create_if_missing=True).hydrate()
    modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()

    done = provision.destroy(resources.env)

    assert done == {
        "app": "absent",
        "events": "absent",
        "state": "deleted",
        "secrets": "absent",
        "worker secrets": "absent",
        "volume": "deleted",
    }


def test_an_environment_whose_database_is_gone_can_be_destroyed(resources: ResourceNames) -> None:
    with pytest.raises(UnreachableError):
        provision.create(configured("postgresql://airflow:hunter2@127.0.0.1:1/airflow"), resources.env)
    told: dict[str, str | None] = {}

    done = provision.destroy(resources.env, progress=lambda step, status, detail: told.update({step: detail}))

    assert done.pop("database") == "kept"
    assert "127.0.0.1:1" in str(told["database"]) and "hunter2" not in str(told["database"])
    assert "DROP TABLE modalflow_environment" in str(told["database"])
    assert set(done.values()) == {"deleted"}


def test_the_volume_can_be_kept(resources: ResourceNames) -> None:
    modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
    files = VolumeFiles.open(resources)
    files.write_many({"dags/a.py": b"A", names.MANIFEST_PATH: b"{}"})

    assert provision.destroy(resources.env, keep_volume=True)["volume"] == "kept"
    assert files.read("dags/a.py") == b"A"
    with pytest.raises(NotFoundError):
        deployment.read(files)


def test_a_volume_that_is_gone_is_not_kept(resources: ResourceNames) -> None:
    modal.Dict.from_name(resources.state_dict, create_if_missing=True).hydrate()

    assert provision.destroy(resources.env, keep_volume=True)["volume"] == "absent"


def test_before_the_schema_is_dropped_the_deployed_run_is_waited_for(
    resources: ResourceNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Control:
        """Stands for the environment, in which a scheduler run ends after one question."""

        def __init__(self, resources: ResourceNames, *, timeout: float) -> None:
            self._answers: Iterator[Any] = iter([{"busy": "a run", "holder": None}, {"changed": True}])

        def call(self, op: str, /, **args: Any) -> Any:
            return next(self._answers)

    def longest_wait() -> str:
        told: list[tuple[str, ...]] = []
        database_steps.drop_schema(resources, lambda *status: told.append(status))
        return told[0][1]

    monkeypatch.setattr(database_steps, "ControlClient", Control)
    modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
    assert longest_wait() == "for a scheduler run to end, at most 420 s"
    config = configured("postgresql://u@h/x", scheduler=SchedulerConfig(max_run_seconds=1000))
    deployment.write(VolumeFiles.open(resources), app.describe(config, resources.env))
    assert longest_wait() == "for a scheduler run to end, at most 1180 s"


def test_a_schema_without_its_app_is_not_dropped_silently(resources: ResourceNames) -> None:
    modal.Dict.from_name(resources.state_dict, create_if_missing=True).hydrate()

    with pytest.raises(NotFoundError, match="not deployed"):
        provision.destroy(resources.env, drop_schema=True)
    modal.Dict.from_name(resources.state_dict).hydrate()


def test_an_environment_that_is_not_deployed_is_told() -> None:
    with pytest.raises(NotFoundError, match="modalflow create --env nowhere"):
        ControlClient(ResourceNames("nowhere")).call("dags.list")
    assert not provision.exists("nowhere")

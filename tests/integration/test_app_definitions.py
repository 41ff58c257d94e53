"""What reaches Modal when an environment's App is deployed, and what its containers find."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import modal
import pytest
from grpclib.client import Channel
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientStub

from airflow_provider_modal import app, deployment, image, names
from airflow_provider_modal.config import (
    CALL_MARGIN_SECONDS,
    MAX_TASK_SECONDS,
    EnvironmentConfig,
    ExecutorConfig,
    ImageConfig,
    SchedulerConfig,
    WorkerProfile,
)
from airflow_provider_modal.container.zygote import READY_TIMEOUT
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.worker import limits, patience
from local_modal.testing import LocalModal
from tests.support.modal_env import using

DATABASE = "postgresql+psycopg2://nobody@127.0.0.1:1/nothing"
CONFIG = EnvironmentConfig(
    "postgresql://nobody@127.0.0.1:1/nothing",
    scheduler=SchedulerConfig(interval_seconds=3600, max_run_seconds=100),
    executor=ExecutorConfig(task_timeout=1800),
    workers={
        "default": WorkerProfile(cpu=2, memory=4096, max_containers=7),
        "gpu": WorkerProfile(
            gpu="A10G",
            timeout=MAX_TASK_SECONDS,
            min_containers=0,
            scaledown_window=300,
            secrets=("hf",),
            nonpreemptible=True,
        ),
    },
    image=ImageConfig(env={"FROM_IMAGE": "a b"}, secrets=("shared",)),
    airflow={"smtp.smtp_password": "hunter2"},
)


@pytest.fixture(scope="module", autouse=True)
def _modal(local_modal: LocalModal) -> Iterator[None]:
    with using(local_modal):
        yield


@pytest.fixture(scope="module")
def env_name() -> str:
    return f"app-{uuid.uuid4().hex[:8]}"


def deploy(env_name: str, local_modal: LocalModal) -> dict[str, api_pb2.FunctionData]:
    """Deploy an App and return its functions by name, as Modal was told of them."""
    if "function" not in api_pb2.FunctionGetResponse.DESCRIPTOR.fields_by_name:
        pytest.skip("the protocol of this modal does not tell a function's definition")
    resources = names.ResourceNames(env_name)
    modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
    for secret, values in (
        (resources.secrets, {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": DATABASE}),
        ("hf", {"HF_TOKEN": "hf_1", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "a user's mistake"}),
        ("shared", {"SHARED": "1"}),
    ):
        modal.Secret.objects.create(secret, values, allow_existing=True)
    app.build_app(CONFIG, env_name).deploy()
    return asyncio.run(_told(local_modal, resources.app))


@pytest.fixture(scope="module")
def functions(env_name: str, local_modal: LocalModal) -> dict[str, api_pb2.FunctionData]:
    """The functions of the environment that the tests share."""
    return deploy(env_name, local_modal)


async def _told(local_modal: LocalModal, app_name: str) -> dict[str, api_pb2.FunctionData]:
    server = urlsplit(local_modal.server_url)
    token = {
        f"x-modal-token-{part}": local_modal.env[f"MODAL_TOKEN_{part.upper()}"] for part in ("id", "secret")
    }
    channel = Channel(server.hostname, server.port)
    try:
        stub = ModalClientStub(channel)
        found = await stub.AppGetByDeploymentName(
            api_pb2.AppGetByDeploymentNameRequest(name=app_name), metadata=token
        )
        layout = await stub.AppGetLayout(api_pb2.AppGetLayoutRequest(app_id=found.app_id), metadata=token)
        return {
            name: (
                await stub.FunctionGet(
                    api_pb2.FunctionGetRequest(app_name=app_name, object_tag=name), metadata=token
                )
            ).function
            for name in layout.app_layout.function_ids
        }
    finally:
        channel.close()


def ranked(function: api_pb2.FunctionData) -> Any:
    return function.ranked_functions[0].function


def test_an_environment_has_one_schedule_and_a_function_per_profile(
    functions: dict[str, api_pb2.FunctionData],
) -> None:
    assert sorted(functions) == [
        "control",
        "execute_task",
        "execute_task_gpu",
        "run_triggers",
        "scheduler_run",
        "scheduler_tick",
    ]
    assert [name for name, f in functions.items() if f.HasField("schedule")] == ["scheduler_tick"]
    assert functions["scheduler_tick"].schedule.period.seconds == 3600


def test_the_tick_is_small_and_has_no_volume(functions: dict[str, api_pb2.FunctionData]) -> None:
    tick = functions["scheduler_tick"]

    assert ranked(tick).resources.milli_cpu == 125
    assert ranked(tick).resources.memory_mb == 128
    assert tick.autoscaler_settings.scaledown_window == 2
    assert not ranked(tick).volume_mounts


def test_one_container_schedules(functions: dict[str, api_pb2.FunctionData]) -> None:
    run = functions["scheduler_run"]

    assert run.autoscaler_settings.max_containers == 1
    assert run.autoscaler_settings.scaledown_window == 120
    assert run.timeout_secs == 100 + app.RUN_MARGIN_SECONDS


def test_one_container_runs_triggers_for_as_long_as_modal_allows(
    functions: dict[str, api_pb2.FunctionData],
) -> None:
    triggers = functions["run_triggers"]

    assert triggers.autoscaler_settings.max_containers == 1
    assert triggers.timeout_secs == 24 * 3600
    assert (ranked(triggers).resources.milli_cpu, ranked(triggers).resources.memory_mb) == (125, 512)


@pytest.mark.parametrize(("interval", "window"), [(1, 10), (10, 10), (60, 30), (240, 120), (3600, 120)])
def test_the_scheduler_is_gone_between_two_runs_of_an_idle_schedule(interval: int, window: int) -> None:
    assert app.scheduler_scaledown_window(interval) == window


def test_profiles_have_their_resources(functions: dict[str, api_pb2.FunctionData]) -> None:
    default, gpu = functions["execute_task"], functions["execute_task_gpu"]

    assert (ranked(default).resources.milli_cpu, ranked(default).resources.memory_mb) == (2000, 4096)
    assert ranked(default).resources.memory_mb_max == 4096, "what a profile's memory is told to be: a limit"
    assert default.autoscaler_settings.max_containers == 7
    assert ranked(gpu).resources.gpu_config.gpu_type == "A10G"
    assert gpu.autoscaler_settings.scaledown_window == 300
    assert ranked(gpu).scheduler_placement.nonpreemptible
    assert not ranked(default).scheduler_placement.nonpreemptible


def test_modals_limit_comes_after_the_workers_and_within_a_day(
    functions: dict[str, api_pb2.FunctionData],
) -> None:
    assert functions["execute_task"].timeout_secs == 1800 + CALL_MARGIN_SECONDS
    assert functions["execute_task_gpu"].timeout_secs == 24 * 3600


def test_a_calls_margin_covers_its_slowest_start_and_its_slowest_end() -> None:
    # A task that ignores SIGTERM is waited for once more after SIGKILL.
    stop = 2 * limits.GRACE
    calls_to_modal = ("claim", "reload", "claim started", "result", "event", "wake-up")
    slowest = READY_TIMEOUT + stop + len(calls_to_modal) * patience.DEADLINE
    assert slowest < CALL_MARGIN_SECONDS


def test_modal_never_retries_and_gives_one_input_at_a_time(
    functions: dict[str, api_pb2.FunctionData],
) -> None:
    for function in functions.values():
        assert ranked(function).retry_policy.retries == 0
        assert ranked(function).max_concurrent_inputs <= 1


def test_no_deployment_is_like_the_one_before(
    functions: dict[str, api_pb2.FunctionData], local_modal: LocalModal
) -> None:
    """Else Modal would skip it, and a change of the Secret alone would not reach warm containers."""
    again = deploy(f"app-{uuid.uuid4().hex[:8]}", local_modal)
    ids = [
        {deployment_of(function, local_modal) for function in deployed.values()}
        for deployed in (functions, again)
    ]
    assert [len(found) for found in ids] == [1, 1]
    assert ids[0] != ids[1]


def deployment_of(function: api_pb2.FunctionData, local_modal: LocalModal) -> str:
    values: dict[str, str] = {}
    for secret_id in ranked(function).secret_ids:
        values.update(json.loads((local_modal.state_dir / "secrets" / secret_id).read_text()))
    return values["MODALFLOW_DEPLOYMENT"]


def test_the_volume_is_mounted_where_the_settings_say(functions: dict[str, api_pb2.FunctionData]) -> None:
    for name in ("scheduler_run", "run_triggers", "control", "execute_task", "execute_task_gpu"):
        assert [mount.mount_path for mount in ranked(functions[name]).volume_mounts] == ["/vol"]


LOOK_AROUND = """
import importlib.metadata, json, os, subprocess, sys
import airflow_provider_modal
package = os.path.dirname(airflow_provider_modal.__file__)
shipped = importlib.metadata.distribution("airflow-provider-modal")
asked = subprocess.run(
    ["airflow", "providers", "get", "airflow-provider-modal", "--full", "--output", "json"],
    env={**os.environ, "AIRFLOW_HOME": "/tmp/home", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": ""},
    capture_output=True, text=True, stdin=subprocess.DEVNULL,
)
found = {
    "module": airflow_provider_modal.__file__,
    "metadata": str(shipped.locate_file("")),
    "metadata_files": sorted(os.listdir("%s-%s.dist-info" % (package, shipped.version))),
    "data": os.path.exists(package + "/provider.yaml"),
    "provider": asked.stdout, "problem": asked.stderr[-2000:],
    "environ": {name: os.environ.get(name) for name in ("FROM_IMAGE", "SHARED", "HF_TOKEN",
               "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "MODALFLOW_ROLE", "MODALFLOW_ENV")},
    "settings": os.environ["MODALFLOW_SETTINGS"],
}
"""


@pytest.fixture(scope="module")
def container(env_name: str, functions: dict[str, api_pb2.FunctionData]) -> dict[str, Any]:
    """What code finds in a container with an environment's image, Secrets and variables."""
    resources = names.ResourceNames(env_name)
    probe = modal.App(f"probe-{env_name}", include_source=False)

    def look() -> dict[str, Any]:
        scope: dict[str, Any] = {}
        exec(LOOK_AROUND, scope)
        found: dict[str, Any] = scope["found"]
        return found

    looked = probe.function(
        serialized=True,
        image=image.build_image(CONFIG),
        env=dict(app.airflow_settings.function_environment(CONFIG, env_name, "worker")),
        secrets=[
            modal.Secret.from_name(secret)
            for secret in deployment.base_secrets(CONFIG, resources, CONFIG.workers["gpu"])
        ],
        timeout=120,
    )(look)
    with probe.run():
        found: dict[str, Any] = looked.remote()
    return found


def test_the_package_travels_with_data_and_metadata(container: dict[str, Any]) -> None:
    # Without namespaces /root is a folder somewhere else.
    assert container["module"].endswith("/root/airflow_provider_modal/__init__.py")
    assert container["metadata"].rstrip("/").endswith("/root")
    assert container["metadata_files"] == ["METADATA", "entry_points.txt"]
    assert container["data"]


def test_airflow_finds_the_provider_in_a_container(container: dict[str, Any]) -> None:
    assert "Modal (serverless Airflow)" in container["provider"], container["problem"]


def test_the_environments_own_secret_wins_and_the_users_are_there(container: dict[str, Any]) -> None:
    environ = container["environ"]

    assert environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == DATABASE
    assert (environ["FROM_IMAGE"], environ["SHARED"], environ["HF_TOKEN"]) == ("a b", "1", "hf_1")
    assert environ["MODALFLOW_ROLE"] == "worker"
    assert json.loads(container["settings"])["workers"]["gpu"]["gpu"] == "A10G"
    assert "hunter2" not in container["settings"]


def test_a_function_of_the_app_imports_its_entry(
    functions: dict[str, api_pb2.FunctionData], env_name: str
) -> None:
    """The tick gets as far as the state Dict, which this environment lacks."""
    tick = modal.Function.from_name(names.ResourceNames(env_name).app, "scheduler_tick")

    with pytest.raises(modal.exception.NotFoundError, match="airflow-state"):
        tick.remote()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EnvironmentConfig("x", workers={"default": WorkerProfile(scaledown_window=1)}), "scaledown_window"),
        (
            EnvironmentConfig("x", workers={"default": WorkerProfile(min_containers=3, max_containers=2)}),
            "min_containers",
        ),
    ],
)
def test_settings_that_modal_refuses_are_told_with_the_functions_name(
    config: EnvironmentConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"execute_task.*{message}"):
        app.build_app(config, "dev")

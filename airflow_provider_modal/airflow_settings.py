"""Which Airflow settings does an environment imply?

``create`` bakes the open part of the configuration into every function (``function_environment``) and the
secret part into the environment's Secret (``secret_environment``). When a container's Airflow process
starts, ``apply`` turns both into ``AIRFLOW__*`` variables. Options of the user's ``airflow:`` section win
over our defaults; the options that the product rests on can't be set there (see ``config``).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import uuid
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from airflow_provider_modal import names, version_compat
from airflow_provider_modal.config import EnvironmentConfig
from airflow_provider_modal.errors import ConfigError

ENV_NAME = "MODALFLOW_ENV"
"""The environment's name, in a container as on the command line."""
SETTINGS = "MODALFLOW_SETTINGS"
"""``EnvironmentConfig.to_settings()`` as JSON."""
ROLE = "MODALFLOW_ROLE"
"""What a container is for: one of ``ROLES``."""
DEPLOYMENT = "MODALFLOW_DEPLOYMENT"
"""Another value for each deployment (see ``new_deployment``)."""
VOLUME_PATH = "MODALFLOW_VOLUME_PATH"
"""Where the Volume is mounted."""
DISPATCH = "MODALFLOW_DISPATCH"
"""In a task's process: the dispatch that it runs, as in the task's log and ``external_executor_id``."""

UI_PASSWORDS = "MODALFLOW_UI_PASSWORDS"
"""Passwords of the configuration's UI users as JSON, by name. In the environment's Secret."""
UI_PASSWORD = "MODALFLOW_UI_PASSWORD"
"""The password of ``UI_USER`` while ``modalflow ui`` runs, where the configuration names no users."""
UI_USER = "admin"

ROLES = ("tick", "scheduler", "triggers", "worker", "control", "ui")
DEFAULT_VOLUME_PATH = "/vol"
CONNECTION = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
"""The one variable that holds the database URL, also for code without Airflow (see ``database_url``)."""

FERNET_KEY = "AIRFLOW__CORE__FERNET_KEY"
"""One key, or several that are separated by commas while they are rotated."""


@dataclass(frozen=True)
class SecretKeys:
    """Keys made once per environment, never changed by a later ``create``."""

    fernet_key: str = field(repr=False)
    jwt_secret: str = field(repr=False)
    api_secret_key: str = field(repr=False)


def new_deployment() -> str:
    """Return an id for a deployment; ids sort as the deployments come, by their first 8 characters alone.

    By the clock of whoever deploys: one that is slow makes a deployment count as earlier than it is, which
    lets a triggerer of the deployment before go on until its time is used up.
    """
    return f"{int(time.time()):08x}{uuid.uuid4().hex}"


def function_environment(config: EnvironmentConfig, env: str, role: str) -> dict[str, str]:
    """Return the open environment variables of a function; everything else follows from them in ``apply``."""
    return {
        ENV_NAME: env,
        ROLE: role,
        VOLUME_PATH: DEFAULT_VOLUME_PATH,
        SETTINGS: json.dumps(config.to_settings(), sort_keys=True),
    }


def secret_environment(config: EnvironmentConfig, env: str) -> dict[str, str]:
    """Return what ``create`` may overwrite in the Secret: the database URL and the user's options.

    And, although it is no secret, what a worker's own environment says: a task that wants Secrets of its own
    gets containers with these and the environment's Secret, and without the function's variables. Modal keeps
    those in a nameless Secret, which can't be named again. Functions of other roles overrule it.
    """
    values = {f"AIRFLOW__{_variable(option)}": value for option, value in config.airflow.items()}
    # SQLAlchemy 2.1 reads plain "postgresql" as psycopg 3; libpq's own tools refuse a driver's name.
    url = config.connection_string.replace("postgresql:", "postgresql+psycopg2:", 1)
    passwords = json.dumps({name: user.password for name, user in config.ui_users.items()})
    return {
        **values,
        **function_environment(config, env, "worker"),
        CONNECTION: url,
        UI_PASSWORDS: passwords,
    }


def secret_keys_environment(keys: SecretKeys) -> dict[str, str]:
    """Return what ``create`` writes into a new Secret only: losing a Fernet key loses every connection."""
    return {
        FERNET_KEY: keys.fernet_key,
        "AIRFLOW__API_AUTH__JWT_SECRET": keys.jwt_secret,
        "AIRFLOW__API__SECRET_KEY": keys.api_secret_key,
        "AIRFLOW__WEBSERVER__SECRET_KEY": keys.api_secret_key,
    }


def deployed_config(environ: Mapping[str, str] = os.environ) -> EnvironmentConfig:
    """Return the configuration that this container was deployed with, without its secret parts.

    :raises ConfigError: the process is not in a container of an environment.
    """
    try:
        return EnvironmentConfig.from_settings(json.loads(environ[SETTINGS]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{SETTINGS} is missing or of another release ({type(error).__name__}: {error}); redeploy: "
            "modalflow create"
        ) from None


def deployed_names(environ: Mapping[str, str] = os.environ) -> names.ResourceNames:
    """Return the resource names of the environment that this container belongs to."""
    return names.ResourceNames(environ[ENV_NAME])


def database_url(environ: Mapping[str, str] = os.environ) -> str:
    """Return the database URL for psycopg2. It holds the password: never log it."""
    return environ[CONNECTION].replace("postgresql+psycopg2:", "postgresql:", 1)


def volume_mount(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the Volume is mounted in this container."""
    return Path(environ.get(VOLUME_PATH, DEFAULT_VOLUME_PATH))


def local_root() -> Path:
    """Return this container's own folder on local disk: logs, materialised DAG versions, AIRFLOW_HOME."""
    return Path(tempfile.gettempdir()) / "modalflow"


def log_folder() -> Path:
    """Return Airflow's ``base_log_folder``: local disk, from where the shipper takes segments."""
    return local_root() / "logs"


def parse_log_folder() -> Path:
    """Return where the DAG processor writes its logs, one per DAG file."""
    return local_root() / "dag_processor_logs"


def apply(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the ``AIRFLOW__*`` variables of this container; to be called before Airflow is imported."""
    config = deployed_config(environ)
    for option, value in _owned(config, environ[ENV_NAME]).items():
        environ[f"AIRFLOW__{_variable(option)}"] = value
    for option, value in _defaults(config, environ.get(ROLE, "")).items():
        environ.setdefault(f"AIRFLOW__{_variable(option)}", value)
    if find_spec("asyncpg") is None:
        # Airflow would derive a URL for asyncpg and fail while imported; empty turns those sessions off.
        environ.setdefault("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC", "")
    environ["AIRFLOW_HOME"] = str(local_root() / "airflow")


def _owned(config: EnvironmentConfig, env: str) -> dict[str, str]:
    """Options that the product rests on."""
    bundle = {
        "name": names.BUNDLE_NAME,
        "classpath": "airflow_provider_modal.bundles.volume.VolumeDagBundle",
        "kwargs": {},
    }
    return {
        "core.executor": "airflow_provider_modal.executors.ModalExecutor",
        "core.hostname_callable": "airflow_provider_modal.container.identity.get_hostname",
        "core.xcom_backend": f"{version_compat.adapter('airflow_provider_modal.xcom')}.VolumeXComBackend",
        "core.parallelism": str(config.executor.parallelism),
        "core.dags_folder": str(local_root() / "dags"),
        "core.simple_auth_manager_all_admins": "False",
        "dag_processor.dag_bundle_config_list": json.dumps([bundle]),
        # Pages read logs from the Volume.
        "logging.logging_config_class": "airflow_provider_modal.log.config.LOGGING_CONFIG",
        "logging.base_log_folder": str(log_folder()),
        "logging.dag_processor_child_process_log_directory": str(parse_log_folder()),
        "modal.environment": env,
        "modal.xcom_threshold_bytes": str(config.xcom.threshold_bytes),
        "modal.xcom_allow_pickle": str(config.xcom.allow_pickle),
        "modal.serverless": "True",
    }


def _defaults(config: EnvironmentConfig, role: str) -> dict[str, str]:
    """Options that the user's ``airflow:`` section may change."""
    # Between two runs only ticks write heartbeats, and while nothing is due they leave the database alone for
    # ten minutes; the environment is healthy all the same.
    healthy_for = str(3 * config.scheduler.interval_seconds + 600)
    return {
        "core.load_examples": "False",
        "core.dagbag_import_timeout": f"{config.scheduler.parse_timeout_seconds:g}",
        "core.dags_are_paused_at_creation": "False",
        # The scheduler opens a session many times per loop, and a connection takes several round trips. In
        # the many workers a pool would only hold connections that Postgres counts.
        "database.sql_alchemy_pool_enabled": str(role in ("scheduler", "triggers")),
        "database.sql_alchemy_pool_size": "2",
        "database.sql_alchemy_connect_args": "airflow_provider_modal.db.engine.CONNECT_ARGUMENTS",
        "scheduler.task_instance_heartbeat_timeout": f"{config.executor.zombie_after_seconds:.0f}",
        "scheduler.scheduler_zombie_task_threshold": f"{config.executor.zombie_after_seconds:.0f}",
        # A call may wait in Modal's own queue for as long as its profile's containers are busy; Airflow would
        # take the task back after ten minutes and fail it the third time. The executor asks Modal about
        # dispatches of which nothing is heard. The option is also the life of a workload's token, which a
        # worker with an execution API of its own does not use.
        "scheduler.task_queued_timeout": "86400",
        "scheduler.scheduler_health_check_threshold": healthy_for,
        # A bounded run must look at every active run before it may end.
        "scheduler.max_dagruns_per_loop_to_schedule": "500",
        "scheduler.max_dagruns_to_create_per_loop": "100",
        "scheduler.standalone_dag_processor": "True",
        "dag_processor.health_check_threshold": healthy_for,
        "triggerer.triggerer_health_check_threshold": healthy_for,
        "dag_processor.min_file_process_interval": "3600",
        # A table of all files after each pass says less than the run's own summary.
        "dag_processor.print_stats_interval": "0",
        "dag_processor.parsing_processes": "2",
        "dag_processor.dag_file_processor_timeout": f"{config.scheduler.parse_timeout_seconds + 3:.0f}",
        "workers.min_heartbeat_interval": "5",
        # What a task leaves running may hold its output open; it is killed as soon as the supervisor ends.
        "workers.socket_cleanup_timeout": "5",
        "usage_data_collection.enabled": "False",
    }


def _variable(option: str) -> str:
    """``core.parallelism`` -> ``CORE__PARALLELISM``; the option's name is what follows the last dot."""
    section, _, name = option.rpartition(".")
    return f"{section.replace('.', '_')}__{name}".upper()

"""What did the user ask for in config.yaml?

``load`` turns the file into a validated :class:`EnvironmentConfig` or raises a :class:`ConfigError` that
names the key, what was found and what is allowed. ``${VAR}`` in a value reads the caller's environment.

Secret values (the database URL, ``airflow`` options) stay in this object and the environment's Secret.
What stands below a field is its documentation, also for users: ``modalflow config example`` prints it.

``to_settings`` is what travels in the open, to the functions and onto the Volume: it has neither those nor
what only the image's build needs, because ``image.pip`` and ``image.env`` may hold tokens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from airflow_provider_modal import config_reader, names
from airflow_provider_modal.config_reader import Reader, kind
from airflow_provider_modal.db.url import fault
from airflow_provider_modal.errors import ConfigError

MODAL_MAX_TIMEOUT = 24 * 3600
"""Modal's limit for one function call, in seconds (https://modal.com/docs/guide/timeouts)."""
CALL_MARGIN_SECONDS = 360
"""What a task's call may take on top of the task, in seconds. Before it, the container's Airflow process
warms up (``zygote.READY_TIMEOUT``), the dispatch is claimed and the DAG code fetched. After it, a task that
ignores its time limit is stopped (``worker.limits.GRACE``, twice), its log shipped and its end reported.
Modal's own limit, which ends the container without a word, must come later than all of this."""
MAX_TASK_SECONDS = MODAL_MAX_TIMEOUT - CALL_MARGIN_SECONDS
"""The longest time limit that a task may have."""
RUN_MARGIN_SECONDS = 180
"""What a scheduler run needs on top of ``max_run_seconds``: adoption, one parse phase, handing over."""
MAX_RUN_SECONDS = MODAL_MAX_TIMEOUT - RUN_MARGIN_SECONDS
MIN_INTERVAL_SECONDS = 5
MIN_PARSE_MEMORY = 512
"""MiB; what a file's process shares with its parent counts."""
MIN_ZOMBIE_SECONDS = 30
"""A task tells Airflow every five seconds that it lives, and a request may take several."""

UI_ROLES = ("viewer", "user", "op", "admin")
"""Roles of Airflow's simple auth manager, each of which may do what those before it may."""
_USER_NAME = re.compile(r"[A-Za-z0-9._@+-]+")
_AIRFLOW_OPTION = re.compile(r"[a-z0-9_]+(\.[a-z0-9_-]+)+")

_OWNED_OPTIONS = {
    "core.executor": "it is ModalExecutor",
    "core.xcom_backend": "set xcom.threshold_bytes; large values are on the Volume",
    "core.hostname_callable": "task instances are fenced by it",
    "core.simple_auth_manager_all_admins": "the UI is never reachable without a login",
    "core.simple_auth_manager_passwords_file": "set ui.users",
    "core.simple_auth_manager_users": "set ui.users",
    "core.fernet_key": "set keys.fernet_key",
    "core.dags_folder": "DAGs live on the environment's Volume",
    "core.parallelism": "set executor.parallelism",
    "core.execution_api_server_url": "set executor.execution_api",
    "database.sql_alchemy_conn": "set database.connection_string",
    "database.sql_alchemy_conn_async": "set database.connection_string",
    "api_auth.jwt_secret": "it is made by create",
    "api.secret_key": "it is made by create",
    "webserver.secret_key": "it is made by create",
    "modal.environment": "it is the name given to create",
    "modal.xcom_threshold_bytes": "set xcom.threshold_bytes",
    "modal.xcom_allow_pickle": "set xcom.allow_pickle",
    "modal.serverless": "it is True in an environment's own containers",
    "logging.logging_config_class": "logs are kept on the environment's Volume",
    "logging.base_log_folder": "logs are kept on the environment's Volume",
    "logging.dag_processor_child_process_log_directory": "logs are kept on the environment's Volume",
    "dag_processor.dag_bundle_config_list": "DAGs live on the environment's Volume",
}
SECTIONS = ("database", "scheduler", "executor", "workers", "image", "xcom", "ui", "airflow", "keys")


@dataclass(frozen=True)
class SchedulerConfig:
    """``scheduler``: how often to look and how long to work."""

    interval_seconds: int = 60
    """Seconds between two looks at whether anything is due that nobody announced, such as a schedule."""
    parse_timeout_seconds: float = 5
    """Seconds that one DAG file may take to be parsed; then it has an import error."""
    parse_memory: int = 2048
    """MiB that the process which parses a file may use."""
    max_run_seconds: float = 240
    """Seconds that one scheduler run works at most before it hands over to the next."""


@dataclass(frozen=True)
class ExecutorConfig:
    """``executor``: limits of the whole environment."""

    parallelism: int = 16
    """How many tasks run at a time; each holds a connection to the database."""
    task_timeout: float = 3600
    """Seconds that a task may run, unless its profile or itself says otherwise."""
    execution_api: str = "in_process"
    """How tasks reach Airflow; only in_process so far."""
    zombie_after_seconds: float = 300
    """Seconds without a sign of life after which a running task counts as lost."""


@dataclass(frozen=True)
class WorkerProfile:
    """``workers.{name}``: resources of one pool of task containers; a task chooses it by its ``queue``."""

    cpu: float = 1
    """Cores that are reserved."""
    memory: int = 2048
    """MiB: what is reserved, and the limit."""
    gpu: str | None = None
    """Modal's name of a GPU, with a count if wanted: H100, T4:2."""
    timeout: float | None = None
    """Seconds that a task may run; null: executor.task_timeout."""
    min_containers: int = 0
    """Containers that are kept warm, and paid for, all the time."""
    max_containers: int | None = None
    """Containers at a time; null: no limit but executor.parallelism."""
    scaledown_window: int = 60
    """Seconds for which an idle container waits for the next task."""
    secrets: tuple[str, ...] = ()
    """Names of Modal Secrets that its tasks get as environment variables."""
    nonpreemptible: bool = False
    """Whether Modal must not take containers back while they run; they cost more."""


@dataclass(frozen=True)
class ImageConfig:
    """``image``: what the containers run in; ``base`` defaults to Airflow's image of the local versions."""

    base: str | None = None
    """An image with Airflow; null: Airflow's own, of the versions that are installed here."""
    apt: tuple[str, ...] = ()
    """Packages of the Linux distribution."""
    pip: tuple[str, ...] = ()
    """Python packages, such as [pandas==2.2.3]."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables; not for secrets."""
    secrets: tuple[str, ...] = ()
    """Names of Modal Secrets that all containers get as environment variables."""


@dataclass(frozen=True)
class XComConfig:
    """``xcom``: where the values are that tasks pass on."""

    threshold_bytes: int = 32768
    """Bytes of JSON up to which a value is in the database; larger ones are on the Volume. 0: all of them."""
    allow_pickle: bool = False
    """Whether values that JSON can't carry may be pickled; reading a pickle runs its author's code."""


@dataclass(frozen=True)
class UiUser:
    """``ui.users.{name}``: who may log in to the UI, and as what: viewer, user, op or admin (see Airflow's
    simple auth manager)."""

    password: str = field(default="", repr=False)
    """What to log in with; such as ${ALICE_PASSWORD}."""
    role: str = "admin"
    """viewer, user, op or admin."""


@dataclass(frozen=True)
class EnvironmentConfig:
    """A validated config.yaml."""

    connection_string: str = field(repr=False)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    workers: Mapping[str, WorkerProfile] = field(
        default_factory=lambda: {names.DEFAULT_PROFILE: WorkerProfile()}
    )
    image: ImageConfig = field(default_factory=ImageConfig)
    xcom: XComConfig = field(default_factory=XComConfig)
    ui_users: Mapping[str, UiUser] = field(default_factory=dict)
    airflow: Mapping[str, str] = field(default_factory=dict, repr=False)
    fernet_key: str | None = field(default=None, repr=False)

    def task_timeout(self, profile: str) -> float:
        """Return how many seconds a task of ``profile`` may run when it does not say so itself."""
        return self.workers[profile].timeout or self.executor.task_timeout

    def to_settings(self) -> dict[str, Any]:
        """Return what a deployed function needs to know and anybody may read; JSON-able."""
        return {
            "scheduler": asdict(self.scheduler),
            "executor": asdict(self.executor),
            "workers": {name: asdict(profile) for name, profile in self.workers.items()},
            "image": {"base": self.image.base, "secrets": list(self.image.secrets)},
            "xcom": asdict(self.xcom),
            "ui_users": {name: user.role for name, user in self.ui_users.items()},
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> EnvironmentConfig:
        """Rebuild a configuration from :meth:`to_settings`, also from a later release's; what that leaves out
        is empty."""
        return cls(
            connection_string="",
            scheduler=_known(SchedulerConfig, settings["scheduler"]),
            executor=_known(ExecutorConfig, settings["executor"]),
            workers={name: _known(WorkerProfile, profile) for name, profile in settings["workers"].items()},
            image=_known(ImageConfig, settings["image"]),
            xcom=_known(XComConfig, settings["xcom"]),
            ui_users={name: UiUser(role=role) for name, role in settings["ui_users"].items()},
        )


def load(path: Path, environ: Mapping[str, str] | None = None) -> EnvironmentConfig:
    """Read and validate a config.yaml.

    :param environ: where ``${VAR}`` looks; the process's environment by default.
    :raises ConfigError: the file is missing, not YAML, or a key or value in it is wrong.
    """
    data = config_reader.load_yaml(path)
    return parse(data, source=str(path), environ=os.environ if environ is None else environ)


def parse(data: Any, *, source: str, environ: Mapping[str, str]) -> EnvironmentConfig:
    """Validate the content of a config.yaml.

    :param source: the file's name, for messages.
    :raises ConfigError: a key is unknown or missing, or a value is not allowed.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: expected sections such as 'database:', found {kind(data)}")
    reader = Reader(source, environ)
    reader.known_keys("", data, [*SECTIONS])

    database = reader.section(data, "database", ["connection_string"])
    if "connection_string" not in database:
        raise ConfigError(
            f"{source}: database.connection_string is missing; set it to the PostgreSQL URL of the metadata "
            "database, such as postgresql://user:password@host:5432/airflow"
        )
    connection_string = _postgres_url(
        source, reader.text("database.connection_string", database["connection_string"])
    )

    scheduler = reader.dataclass(SchedulerConfig, data, "scheduler")
    executor = reader.dataclass(ExecutorConfig, data, "executor")
    reader.positive("scheduler", scheduler, zero_allowed=("parse_memory",))
    reader.positive("executor", executor)
    reader.within(
        "scheduler.interval_seconds",
        scheduler.interval_seconds,
        least=MIN_INTERVAL_SECONDS,
        why="each time a container starts, which takes seconds",
    )
    if scheduler.parse_memory:
        reader.within(
            "scheduler.parse_memory",
            scheduler.parse_memory,
            least=MIN_PARSE_MEMORY,
            why="Airflow alone takes some hundred MiB; 0 is for no limit",
        )
    reader.within(
        "scheduler.max_run_seconds",
        scheduler.max_run_seconds,
        most=MAX_RUN_SECONDS,
        why=f"Modal ends a call after 24 hours, of which a run's end may need {RUN_MARGIN_SECONDS} s",
    )
    reader.within(
        "executor.zombie_after_seconds",
        executor.zombie_after_seconds,
        least=MIN_ZOMBIE_SECONDS,
        why="healthy tasks are heard of every few seconds, and would be failed",
    )
    if executor.execution_api != "in_process":
        raise ConfigError(
            f"{source}: executor.execution_api is {executor.execution_api!r}; so far only 'in_process' works"
        )
    _task_seconds(reader, "executor.task_timeout", executor.task_timeout)

    workers = _workers(reader, data)
    image = reader.dataclass(ImageConfig, data, "image")
    xcom = reader.dataclass(XComConfig, data, "xcom")
    reader.positive("xcom", xcom, zero_allowed=("threshold_bytes",))
    keys = reader.section(data, "keys", ["fernet_key"])
    return EnvironmentConfig(
        connection_string=connection_string,
        scheduler=scheduler,
        executor=executor,
        workers=workers,
        image=image,
        xcom=xcom,
        ui_users=_ui_users(reader, data),
        airflow=_airflow_options(reader, data),
        fernet_key=reader.text("keys.fernet_key", keys["fernet_key"]) if "fernet_key" in keys else None,
    )


def _workers(reader: Reader, data: Mapping[str, Any]) -> dict[str, WorkerProfile]:
    section = reader.named(reader.section(data, "workers", None), "workers.")
    workers = {names.DEFAULT_PROFILE: WorkerProfile()}
    for name in section:
        names.task_function(name)
        profile = reader.dataclass(WorkerProfile, section, name, prefix="workers.")
        reader.positive(f"workers.{name}", profile, zero_allowed=("min_containers",))
        if profile.timeout is not None:
            _task_seconds(reader, f"workers.{name}.timeout", profile.timeout)
        workers[name] = profile
    return workers


def _ui_users(reader: Reader, data: Mapping[str, Any]) -> dict[str, UiUser]:
    section = reader.section(data, "ui", ["users"])
    users = {}
    named = reader.named(reader.section(section, "users", None, prefix="ui."), "ui.users.")
    for name in named:
        where = f"ui.users.{name}"
        if not _USER_NAME.fullmatch(name):
            raise ConfigError(
                f"{reader.source}: {where}: a user's name consists of letters, digits and . _ @ + -"
            )
        user = reader.dataclass(UiUser, named, name, prefix="ui.users.")
        if not user.password:
            raise ConfigError(f"{reader.source}: {where}.password is missing; such as ${{UI_PASSWORD}}")
        if user.role not in UI_ROLES:
            raise ConfigError(
                f"{reader.source}: {where}.role must be one of {', '.join(UI_ROLES)}, found {user.role!r}"
            )
        users[name] = user
    return users


def _task_seconds(reader: Reader, where: str, seconds: float) -> None:
    if seconds > MAX_TASK_SECONDS:
        raise ConfigError(
            f"{reader.source}: {where} is {seconds:g} seconds; Modal ends a call after 24 hours, of which "
            f"the container's start and the task's orderly end may need {CALL_MARGIN_SECONDS} s, so at "
            f"most {MAX_TASK_SECONDS:g} are possible"
        )


def _airflow_options(reader: Reader, data: Mapping[str, Any]) -> dict[str, str]:
    options: dict[str, str] = {}
    for option, value in reader.section(data, "airflow", None).items():
        where = f"airflow.{option!r}"
        if not isinstance(option, str) or not _AIRFLOW_OPTION.fullmatch(option):
            raise ConfigError(
                f"{reader.source}: {where} is not an Airflow option; write it as 'section.option'"
            )
        if option in _OWNED_OPTIONS:
            raise ConfigError(f"{reader.source}: {where} can't be set here: {_OWNED_OPTIONS[option]}")
        options[option] = reader.text(where, value)
    return options


def _postgres_url(source: str, url: str) -> str:
    scheme = url.split(":", 1)[0].split("+", 1)[0]
    if "://" not in url or scheme not in ("postgresql", "postgres"):
        found = {"sqlite": "SQLite", "mysql": "MySQL"}.get(
            scheme, "something else" if "://" in url else "no URL"
        )
        raise ConfigError(
            f"{source}: database.connection_string must be a PostgreSQL URL (postgresql://user:password@host:5432/"
            f"name), found {found}: the scheduler relies on PostgreSQL's advisory locks and row locks"
        )
    wrong = fault(url)
    if wrong is not None:
        raise ConfigError(f"{source}: database.connection_string is not a valid PostgreSQL URL: {wrong}")
    return "postgresql://" + url.split("://", 1)[1]


def _known(cls: type, values: Mapping[str, Any]) -> Any:
    """Rebuild a section. What a later release added to it is left out: while a deployment is under way, a
    container of the former one may find the Secret of the next."""
    names_known = {f.name for f in fields(cls)}
    return cls(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in names_known
        }
    )

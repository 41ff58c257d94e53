"""How are the resources of an environment called?

Every name and key that two parts of the product must agree on is built here: Modal resources, functions,
keys of the state Dict, partitions of the event Queue, folders of the Volume.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from airflow_provider_modal.errors import ConfigError

ENVIRONMENT_NAME_MAX = 32
_ENVIRONMENT_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_UI_PREFIX = "ui-"
_PROFILE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?")

SCHEDULER_TICK = "scheduler_tick"
SCHEDULER_RUN = "scheduler_run"
EXECUTE_TASK = "execute_task"
RUN_TRIGGERS = "run_triggers"
CONTROL = "control"

DEFAULT_PROFILE = "default"
BUNDLE_NAME = "modal-volume"
"""Name of the DAG bundle on the Volume; for ever the same, because renaming a bundle deactivates its DAGs."""

# Folders of the Volume, relative to its root.
DAGS_FOLDER = "dags"
LOGS_FOLDER = "logs"
XCOM_FOLDER = "xcom"
VENVS_FOLDER = "venvs"
INTERNAL_FOLDER = ".modalflow"
MANIFEST_PATH = f"{INTERNAL_FOLDER}/deployment.json"

# Keys of the state Dict that exist once per environment.
WAKE_KEY = "wake"
SLEEP_UNTIL_KEY = "sleep_until"
"""What the last tick found, and how long that holds."""
RUNS_KEY = "runs"
"""The last scheduler runs."""
TRIGGERER_KEY = "triggerer"
"""Whether the last triggerers failed."""
DAG_TREE_KEY = "dag-tree"
"""Who changes the DAG tree as a whole at the moment (see ``volume.dag_lock``)."""

SCHEDULER_PARTITION = "scheduler"
"""Partition of the event Queue that a serverless scheduler reads."""


@dataclass(frozen=True)
class ResourceNames:
    """Names of the Modal resources of one environment."""

    env: str

    def __post_init__(self) -> None:
        """Refuse environment names that could not be part of a Modal resource's name."""
        if len(self.env) > ENVIRONMENT_NAME_MAX or not _ENVIRONMENT_NAME.fullmatch(self.env):
            raise ConfigError(
                f"environment name {self.env!r} is not allowed: use 1 to {ENVIRONMENT_NAME_MAX} characters "
                "of a-z, 0-9 and '-', with a letter or digit at both ends"
            )
        if self.env.startswith(_UI_PREFIX):
            raise ConfigError(
                f"environment name {self.env!r} is not allowed: its App would have the name of the UI of "
                f"environment {self.env.removeprefix(_UI_PREFIX)!r}; choose one that does not begin with "
                f"{_UI_PREFIX!r}"
            )

    @property
    def app(self) -> str:
        """The deployed App."""
        return f"modalflow-{self.env}"

    @property
    def volume(self) -> str:
        """The Volume (version 2)."""
        return f"airflow-vol-{self.env}"

    @property
    def state_dict(self) -> str:
        """The Dict with wake-ups, claims and results."""
        return f"airflow-state-{self.env}"

    @property
    def events_queue(self) -> str:
        """The Queue of completion events."""
        return f"airflow-events-{self.env}"

    @property
    def secrets(self) -> str:
        """The Secret with the database URL and all keys."""
        return f"airflow-secrets-{self.env}"

    @property
    def worker_secrets(self) -> str:
        """The Secret of workers that have no database access."""
        return f"airflow-worker-secrets-{self.env}"

    @property
    def ui_app(self) -> str:
        """The ephemeral App that serves the UI."""
        return f"modalflow-{_UI_PREFIX}{self.env}"


def task_function(profile: str) -> str:
    """Return the name of the function that runs tasks of a worker profile.

    :raises ConfigError: the profile's name could not be part of a function's name.
    """
    if profile == DEFAULT_PROFILE:
        return EXECUTE_TASK
    if len(profile) > 32 or not _PROFILE_NAME.fullmatch(profile):
        raise ConfigError(
            f"worker profile {profile!r} is not allowed: use 1 to 32 characters of a-z, 0-9, '-' and '_', "
            "with a letter or digit at both ends"
        )
    return f"{EXECUTE_TASK}_{profile}"


def job_partition(job_id: int | str, team: str | None = None) -> str:
    """Return the partition of the event Queue that the scheduler with this Airflow job id reads.

    :param team: whose executor reads it: a scheduler has one for each team, maybe in the same environment.
    """
    return f"job-{job_id}{_of_team(team)}"


def scheduler_partition(team: str | None = None) -> str:
    """Return the partition of the event Queue that a serverless scheduler reads; see ``job_partition``."""
    return f"{SCHEDULER_PARTITION}{_of_team(team)}"


def _of_team(team: str | None) -> str:
    """Return what a team adds to a partition's name, of which Modal allows 64 characters.

    What it is added to has 36 at most, of which 32 are a UUID in place of a job id.
    """
    if team is None:
        return ""
    return f"-{team}" if len(team) <= 24 else f"-{hashlib.sha256(team.encode()).hexdigest()[:24]}"


def call_key(dispatch: str) -> str:
    """Key of the state Dict: which function call runs a dispatch."""
    return f"call:{dispatch}"


def cancel_key(dispatch: str) -> str:
    """Key of the state Dict: who had a dispatch's function call cancelled, and why."""
    return f"cancel:{dispatch}"


def claim_key(dispatch: str) -> str:
    """Key of the state Dict: which delivery of a dispatch may run it."""
    return f"claim:{dispatch}"


def venv_key(key: str) -> str:
    """Key of the state Dict: which container builds a virtualenv."""
    return f"venv:{key}"


def result_key(dispatch: str) -> str:
    """Key of the state Dict: how a dispatch ended."""
    return f"result:{dispatch}"

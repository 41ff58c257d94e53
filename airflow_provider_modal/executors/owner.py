"""Which of an Airflow's executors has a task instance, and with whose options?

Asked in the API server and the triggerer, where executors are never started and Airflow (3.3.2) takes a
team's executor for the global one of the same name.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from airflow_provider_modal import wire
from airflow_provider_modal.executors.options import Configuration, Options

log = logging.getLogger(__name__)

PACKAGE = "airflow_provider_modal."


@dataclass(frozen=True)
class Owner:
    """An executor of ours.

    :param team: whose it is; None for a global one.
    """

    team: str | None = None

    def options(self) -> Options:
        """Return its options.

        :raises ConfigError: one of them is wrong.
        """
        return Options.read(_configuration(self.team))


def owner_of(ti: Any) -> Owner | None:
    """Return the executor that a task instance, or a former try of it, belongs to; None if it is not ours.

    What ran on Modal is ours whatever the configuration says today.
    """
    team = team_of(ti.key.dag_id)
    wanted = getattr(ti, "executor", None)
    ran_here = wire.is_call_id(wire.parse_external_executor_id(ti.external_executor_id)[1])
    ours: Owner | None = None
    for name in _names(team):
        is_ours = _is_ours(name.module_path)
        if is_ours and ours is None:
            ours = Owner(getattr(name, "team_name", None))
        if wanted in (None, name.alias, name.module_path, name.module_path.rpartition(".")[2]):
            if is_ours:
                return Owner(getattr(name, "team_name", None))
            if not ran_here:
                return None
    return ours or Owner(None) if ran_here else None


def team_with_executor(dag_id: str) -> str | None:
    """Return a DAG's team if that has an executor of ours, None if its tasks can only have a global one."""
    team = team_of(dag_id)
    own = (name for name in _names(team) if getattr(name, "team_name", None) == team)
    return team if any(_is_ours(name.module_path) for name in own) else None


def team_of(dag_id: str) -> str | None:
    """Return the team that a DAG belongs to, where Airflow has teams."""
    from airflow.configuration import conf

    if not conf.getboolean("core", "multi_team", fallback=False):
        return None
    from airflow.models.dag import DagModel

    team: str | None = DagModel.get_team_name(dag_id)
    return team


def _names(team: str | None) -> list[Any]:
    """Return the names of the executors that a team's tasks may have, its own default first."""
    from airflow.executors.executor_loader import ExecutorLoader

    names: list[Any] = ExecutorLoader.get_executor_names()
    of_team = [name for name in names if team and getattr(name, "team_name", None) == team]
    return of_team + [name for name in names if getattr(name, "team_name", None) is None]


@cache
def _is_ours(module_path: str) -> bool:
    if module_path.startswith(PACKAGE):
        return True
    if module_path.startswith("airflow."):
        return False
    from airflow_provider_modal.executors import ModalExecutor

    module, _, attribute = module_path.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        # Airflow itself tells of it where the executor is needed.
        log.warning("executor %s can't be loaded: %s", module_path, error)
        return False
    return isinstance(found, type) and issubclass(found, ModalExecutor)


def _configuration(team: str | None) -> Configuration:
    if team is None:
        from airflow.configuration import conf

        return conf
    from airflow.executors.base_executor import ExecutorConf

    return ExecutorConf(team_name=team)

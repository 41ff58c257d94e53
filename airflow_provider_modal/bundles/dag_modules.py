"""How does a process come to import what lies beside the DAGs: modules, ``include/``, ``plugins/``?

Airflow adds a bundle's folder to ``sys.path`` where it parses and runs DAGs, but knows one ``plugins_folder``
for good, and reads it once. In containers of an environment the plugins belong to the DAG version, so a
process that is about to work with a version says so here, before Airflow looks for plugins: parser, task,
scheduler (whose timetables may be plugins) and triggerer.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from airflow_provider_modal import names
from airflow_provider_modal.volume import dag_copies, dag_versions

PLUGINS_FOLDER = "AIRFLOW__CORE__PLUGINS_FOLDER"
_REMEMBERING = (
    "airflow.plugins_manager",
    "airflow.sdk.plugins_manager",
    "airflow.listeners.listener",
    "airflow.sdk.listener",
)
"""Modules of Airflow with cached functions of what plugins offer."""

_used: dict[str, list[str]] = {}


def use(folder: Path, *, bundle: str = names.BUNDLE_NAME, plugins: bool) -> None:
    """Let this process, and those that it forks, import from a version's folder, and from no other version's.

    :param folder: where the version is materialised.
    :param bundle: name of the bundle whose version it is.
    :param plugins: make its ``plugins/`` Airflow's.
    """
    places = [str(folder), str(folder / dag_copies.INCLUDE)]
    if plugins:
        places.append(str(folder / dag_copies.PLUGINS))
    former = _used.get(bundle, [])
    if places == former:
        return
    _used[bundle] = places
    sys.path[:] = [place for place in sys.path if place not in former and place not in places] + places
    if plugins:
        _use_plugins(folder / dag_copies.PLUGINS)


def use_current() -> None:
    """Let this process import from the version that is current for it, if one was named and is on disk."""
    digest = os.environ.get(dag_versions.HEAD_VARIABLE)
    if not digest:
        return
    folder = dag_copies.local_path(dag_copies.default_root(), digest)
    if folder.is_dir():
        use(folder, plugins=True)


def _use_plugins(folder: Path) -> None:
    if PLUGINS_FOLDER not in os.environ and not folder.is_dir():
        # As nearly everywhere: what the zygote knows of plugins holds.
        return
    os.environ[PLUGINS_FOLDER] = str(folder)
    from airflow import settings

    settings.PLUGINS_FOLDER = str(folder)
    for name in _REMEMBERING:
        for member in list(vars(sys.modules[name]).values()) if name in sys.modules else ():
            forget = getattr(member, "cache_clear", None)
            if forget is not None and getattr(member, "__module__", None) == name:
                forget()

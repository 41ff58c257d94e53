"""How does a process that runs user code find a virtualenv's packages?

They come first on its ``sys.path``, before the DAG file is imported. Only there: not in the zygote, which all
tasks of a container share, nor in Airflow's supervisor, which does without them. What the task starts finds
``python`` and the packages' commands of the virtualenv first on ``PATH``. ``PYTHONPATH`` stays as it is: it
would put these packages in front of those of every other virtualenv, too, such as that of a
``PythonVirtualenvOperator``.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import site
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.venvs import folder as venv_folder

VARIABLE = "MODALFLOW_VENV"
"""In a task's process: the folder of its virtualenv, if it has one."""

_SPREAD = ("airflow", "airflow.providers")
"""Packages of which parts may be in a virtualenv, and that list their folders when they are imported."""


def environment(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of a process with this virtualenv."""
    path = environ.get("PATH", os.defpath)
    return {VARIABLE: str(folder), "PATH": f"{folder / 'bin'}{os.pathsep}{path}"}


def in_forks(environ: Mapping[str, str] = os.environ) -> None:
    """Have every process that this one forks from now on find the packages; without a virtualenv nothing.

    :raises ModalflowError: this process has imported some of them already, from elsewhere.
    """
    if VARIABLE not in environ:
        return
    folder = Path(environ[VARIABLE])
    check(folder)
    os.register_at_fork(after_in_child=lambda: activate(folder))


def check(folder: Path) -> None:
    """Refuse a virtualenv that comes too late: what is imported once is not imported again.

    :raises ModalflowError: a module of it is imported already, from elsewhere.
    """
    late = sorted(name for name in _modules(folder) if _is_from_elsewhere(name, folder))
    if late:
        raise ModalflowError(
            f"the container had imported {', '.join(late)} before the task's own version could be used: "
            "Airflow, a plugin or a settings module does that when it starts. Drop the requirement, or put "
            "the version into the image (image.pip in config.yaml)"
        )


def activate(folder: Path) -> None:
    """Put the packages first on ``sys.path``; does nothing the second time."""
    packages = str(venv_folder.site_packages(folder))
    if packages in sys.path:
        return
    before = list(sys.path)
    # Also what its .pth files add; the image's packages, which one of them names, are there already.
    site.addsitedir(packages, set(before))
    sys.path[:] = [path for path in sys.path if path not in before] + before
    for name in _SPREAD:
        module = sys.modules.get(name)
        if module is not None and isinstance(module.__path__, list):
            module.__path__ = pkgutil.extend_path(module.__path__, name)
    importlib.invalidate_caches()


@contextmanager
def activated(folder: Path) -> Iterator[None]:
    """Have this process find the packages during the block, and what it forks meanwhile for ever."""
    path, environ = list(sys.path), dict(os.environ)
    spread = {name: list(sys.modules[name].__path__) for name in _SPREAD if name in sys.modules}
    try:
        activate(folder)
        os.environ.update(environment(folder, os.environ))
        yield
    finally:
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(environ)
        # Airflow imports what a DAG file will want in advance, here: the next file has other packages.
        for name in [name for name in list(sys.modules) if _is_of(name, folder)]:
            del sys.modules[name]
        for name, places in spread.items():
            if isinstance(sys.modules[name].__path__, list):
                sys.modules[name].__path__ = places


def _modules(folder: Path) -> Iterator[str]:
    """Yield the top-level modules of a virtualenv that are not merely a folder shared with others."""
    for path in venv_folder.site_packages(folder).iterdir():
        if path.suffix in (".py", ".so"):
            yield path.name.partition(".")[0]
        elif (path / "__init__.py").is_file():
            yield path.name


def _is_from_elsewhere(name: str, folder: Path) -> bool:
    return _file(name) is not None and not _is_of(name, folder)


def _is_of(name: str, folder: Path) -> bool:
    return (_file(name) or "").startswith(f"{folder}{os.sep}")


def _file(name: str) -> str | None:
    file = getattr(sys.modules.get(name), "__file__", None)
    return file if isinstance(file, str) else None

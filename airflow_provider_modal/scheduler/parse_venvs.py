"""How does a DAG file find the packages of its ``requirements.txt`` while it is parsed?

Whoever holds the lock gets the virtualenvs onto local disk before the parse phase, and the process of each
file has its own. One that can't be had keeps no file from being parsed: many import what they need only when
their tasks run. Should the file fail, its import error says what was missing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.venvs import activation, requirements
from airflow_provider_modal.venvs.provision import Limits, Venvs

log = logging.getLogger(__name__)

INSTALL_SECONDS = 120.0
"""What installing may take in one scheduler run, all files together: scheduling waits for it."""


class Prepared(TypedDict):
    """What became of one ``requirements.txt``; without any requirement in it, both are None."""

    folder: str | None
    problem: str | None


def prepare(
    venvs: Venvs, tree: Path, paths: Mapping[str, str], stop: Callable[[], bool]
) -> dict[str, Prepared]:
    """Get ready what the Python files of a DAG version need, by the path of the ``requirements.txt``.

    :param tree: folder of the version.
    :param paths: of its files; the values don't matter.
    :param stop: asked while installing; True gives up.
    """
    needed = {
        requirements.nearest(path, paths.__contains__) for path in paths if path.endswith((".py", ".zip"))
    }
    ends = time.monotonic() + INSTALL_SECONDS
    found: dict[str, Prepared] = {}
    for path in sorted(path for path in needed if path is not None):
        try:
            wanted = requirements.of_file(tree, path)
            folder = venvs.ready(wanted, os.environ, Limits(ends, stop)) if wanted else None
            found[path] = Prepared(folder=str(folder) if folder else None, problem=None)
        except ModalflowError as error:
            log.warning("DAG files are parsed without the packages of %s: %s", path, error)
            found[path] = Prepared(folder=None, problem=str(error))
        except Exception as error:
            # Such as a full disk: the scheduler has more to do than to parse.
            log.exception("DAG files are parsed without the packages of %s", path)
            found[path] = Prepared(folder=None, problem=f"{type(error).__name__}: {error}")
    return found


class VenvsOfFiles:
    """The virtualenvs of the files that are parsed here.

    :param prepared: see :func:`prepare`.
    """

    def __init__(self, prepared: Mapping[str, Prepared]) -> None:
        self._prepared = dict(prepared)

    @contextmanager
    def used_for(self, path: str) -> Iterator[None]:
        """Have what is forked in the block find the packages of a file."""
        own = self._of(path)
        folder = self._prepared[own]["folder"] if own is not None else None
        if own is None or folder is None:
            yield
            return
        try:
            activation.check(Path(folder))
        except ModalflowError as error:
            log.warning("DAG files are parsed without the packages of %s: %s", own, error)
            self._prepared[own] = Prepared(folder=None, problem=str(error))
            yield
            return
        with activation.activated(Path(folder)):
            yield

    def explained(self, path: str, error: str) -> str:
        """Return a file's import error, with what may have been missing."""
        own = self._of(path)
        problem = self._prepared[own]["problem"] if own is not None else None
        if problem is None:
            return error
        return (
            f"{error.rstrip()}\n\nThe packages of {own} were missing: {problem}\nThe file is parsed again "
            "when one of the two changes, or with all others ([dag_processor] min_file_process_interval)."
        )

    def _of(self, path: str) -> str | None:
        return requirements.nearest(path, self._prepared.__contains__)

"""Which packages are wanted?

A task names them in its ``executor_config``, a folder of DAGs in a ``requirements.txt``. Of several such
files the nearest one counts alone: the one beside the DAG file, else the one in the folder above, and so on
up to the root of the DAG tree. What the task names comes on top of it.

Each line is a requirement (https://peps.python.org/pep-0508/), nothing else: what pip's options say belongs
into the environment's Secrets (``UV_INDEX_URL`` or ``PIP_INDEX_URL`` for an index of your own), where it can
hold a password and where all containers find it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from airflow_provider_modal.errors import ConfigError

FILE_NAME = "requirements.txt"
MOST = 500
"""How many requirements one virtualenv may have."""

_COMMENT = re.compile(r"(?:^|\s)#.*$")
_CONTINUED = re.compile(r"\\\r?\n")
_SCHEMES = ("http", "https", "git+https", "git+ssh")


def normalised(texts: Iterable[str], where: str) -> tuple[str, ...]:
    """Return requirements in one spelling and order, so that equal wishes have equal texts.

    :param where: where they stand, for messages.
    :raises ConfigError: one of them can't be had; the message shows no password of a URL.
    """
    found = {_normal(text, where) for text in texts}
    if len(found) > MOST:
        raise ConfigError(f"{where} has {len(found)} requirements, at most {MOST} are allowed")
    return tuple(sorted(found))


def of_text(text: str, where: str) -> tuple[str, ...]:
    """Return the requirements in the text of a ``requirements.txt``; see :func:`normalised`.

    :raises ConfigError: a line is no requirement.
    """
    lines = (_COMMENT.sub("", line).strip() for line in _CONTINUED.sub(" ", text).splitlines())
    wanted = [line for line in lines if line]
    for line in wanted:
        if line.startswith("-") or " --" in line:
            option = next(word for word in line.split() if word.startswith("-")).partition("=")[0]
            raise ConfigError(
                f"{where} has the option {option}; only requirements can be used there. Write them out; what "
                "says where packages come from belongs into a Secret of the environment (UV_INDEX_URL)"
            )
    return normalised(wanted, where)


def nearest(dag_file: str, exists: Callable[[str], bool]) -> str | None:
    """Return the ``requirements.txt`` that applies to a DAG file; None without one.

    :param dag_file: path below the root of the DAG tree, as is what is returned.
    :param exists: whether there is a file with such a path.
    """
    for folder in PurePosixPath(dag_file).parents:
        path = folder / FILE_NAME
        if ".." not in path.parts and not path.is_absolute() and exists(str(path)):
            return str(path)
    return None


def of_file(tree: Path, path: str) -> tuple[str, ...]:
    """Return the requirements of a file of a DAG version.

    :param tree: folder of the version.
    :raises ConfigError: the file can't be used.
    """
    try:
        text = (tree / path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} in the DAG tree is not UTF-8 text: {error}") from None
    return of_text(text, f"{path} in the DAG tree")


def of_dag_file(tree: Path, dag_file: str) -> tuple[str, ...]:
    """Return the requirements that apply to a DAG file; see :func:`nearest` and :func:`of_file`."""
    path = nearest(dag_file, lambda path: (tree / path).is_file())
    return () if path is None else of_file(tree, path)


def _normal(text: str, where: str) -> str:
    if "\0" in text or "\n" in text:
        raise ConfigError(f"{where} has a requirement with a control character")
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        # The first line says what is wrong; what follows repeats the text, which may hold a password.
        reason = str(error).splitlines()[0]
        shown = "a URL" if "://" in text else repr(text[:60])
        raise ConfigError(
            f"{where} must list requirements such as 'pandas==2.2.3', found {shown}"
            + (f": {reason}" if "://" not in text else "")
        ) from None
    requirement.name = canonicalize_name(requirement.name)
    requirement.extras = {canonicalize_name(extra) for extra in requirement.extras}
    if requirement.url is not None:
        _check_url(requirement, where)
    return str(requirement)


def _check_url(requirement: Requirement, where: str) -> None:
    parts = urlsplit(requirement.url or "")
    if parts.scheme not in _SCHEMES:
        raise ConfigError(
            f"{where}: {requirement.name} comes from {parts.scheme or 'no'}:, which is not the same in each "
            f"container; use one of {', '.join(_SCHEMES)}, or an index"
        )
    if parts.password or (parts.username and parts.scheme != "git+ssh"):
        raise ConfigError(
            f"{where}: the URL of {requirement.name} holds a user or password; requirements are stored and "
            "shown in many places. Put an index with its password into a Secret of the environment "
            "(UV_INDEX_URL)"
        )

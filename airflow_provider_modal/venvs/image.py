"""What does the image have already, and what of that must stay as it is?

A virtualenv comes in front of the image's packages in the task's process, and Airflow is imported there
already. So whatever Airflow needs is a constraint: a requirement can never replace it, silently or otherwise.
What the image has beyond that may be replaced for a task.
"""

from __future__ import annotations

import platform
import re
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from airflow_provider_modal.errors import ConfigError

ROOTS = ("apache-airflow", "apache-airflow-core", "apache-airflow-task-sdk", "airflow-provider-modal")
"""Distributions that are pinned with all they need; providers only as far as Airflow needs them."""

_METADATA = re.compile(r"(?P<name>.+?)-(?P<version>[^-]+)\.dist-info")


@cache
def installed() -> Mapping[str, str]:
    """Return the version of each distribution that this process can import, by its normalised name.

    From the names of metadata folders alone: reading them all would take as long as installing a package.
    """
    found: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = [path.name for path in Path(folder or ".").iterdir() if path.suffix == ".dist-info"]
        except OSError:
            continue  # a zip archive, or a folder that does not exist
        for name in names:
            match = _METADATA.fullmatch(name)
            if match:
                found.setdefault(canonicalize_name(match["name"]), match["version"])
    return found


def platform_tag() -> str:
    """Return what compiled packages depend on: interpreter, machine and C library."""
    library = "".join(platform.libc_ver())
    return f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}-{library}"


def pins(roots: Iterable[str] = ROOTS) -> dict[str, str]:
    """Return the version of each installed distribution that Airflow or this package needs, by name."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting: list[tuple[str, str]] = [(canonicalize_name(root), "") for root in roots]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # not in this image, or for another platform
        found[name] = distribution.version
        for text in distribution.requires or ():
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue  # of an old release of something; then it isn't held
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                waiting += [(needed, each) for each in ("", *requirement.extras)]
    return found


def check(requirements: Iterable[str], pinned: Mapping[str, str]) -> None:
    """Refuse a requirement that asks for another version of something that Airflow needs.

    :raises ConfigError: there is one; says which, what the image has and what was asked.
    """
    for text in requirements:
        requirement = Requirement(text)
        held = pinned.get(canonicalize_name(requirement.name))
        if held is None or (requirement.marker is not None and not requirement.marker.evaluate()):
            continue
        asked = requirement.url if requirement.url is not None else str(requirement.specifier)
        if requirement.url is not None or not requirement.specifier.contains(held, prereleases=True):
            raise ConfigError(
                f"{requirement.name} {asked} was asked for, and Airflow in this image needs "
                f"{requirement.name} {held}, which can't be replaced for a task; ask for a version that this "
                "satisfies, or run the code in a PythonVirtualenvOperator, apart from Airflow"
            )

"""What does an interpreter have installed, and what of the packages that an image installs does it lack?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from local_modal.ask_python import ask


@dataclass(frozen=True)
class Distribution:
    """An installed distribution."""

    version: str
    requires: tuple[str, ...]


@dataclass(frozen=True)
class Installed:
    """What an interpreter has."""

    python: str
    """The interpreter's path."""
    markers: Mapping[str, str]
    """The variables of environment markers."""
    distributions: Mapping[str, Distribution]
    """By canonical name."""

    @property
    def python_version(self) -> str:
        """Such as 3.12."""
        return self.markers["python_version"]

    def lacking(self, requirements: Iterable[Requirement]) -> list[str]:
        """What isn't there, or in another version, each as a phrase such as "rich>=13 (found 12.0)"."""
        return list(dict.fromkeys(phrase for wanted in requirements for phrase in self._lacking(wanted, "")))

    def _lacking(self, wanted: Requirement, extra: str) -> Iterator[str]:
        if wanted.marker is not None and not wanted.marker.evaluate({**self.markers, "extra": extra}):
            return
        found = self.distributions.get(canonicalize_name(wanted.name))
        if found is None:
            yield f"{wanted.name}{wanted.specifier}"
            return
        if not wanted.specifier.contains(found.version, prereleases=True):
            yield f"{wanted.name}{wanted.specifier} (found {found.version})"
        for wanted_extra in sorted(wanted.extras):
            for line in found.requires:
                yield from self._of_extra(line, wanted_extra)

    def _of_extra(self, line: str, extra: str) -> Iterator[str]:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            return  # of an old package that pip installed nevertheless
        marker = requirement.marker
        if marker is not None and not marker.evaluate({**self.markers, "extra": ""}):
            yield from self._lacking(requirement, extra)


async def probe(python: str) -> Installed:
    """Ask an interpreter what it has.

    Raises:
        OSError: it can't be started.
        ValueError: it doesn't answer.
    """
    markers, distributions = await ask(python, _PROBE)
    return Installed(
        python,
        markers,
        {
            canonicalize_name(name): Distribution(version, tuple(requires))
            for name, version, requires in distributions
            if name and version
        },
    )


# The first one found is the one that is imported, hence the reversed order.
_PROBE = """
import json, os, platform, sys
from importlib.metadata import distributions
version = sys.implementation.version
markers = {
    "implementation_name": sys.implementation.name,
    "implementation_version": "%d.%d.%d" % version[:3],
    "os_name": os.name,
    "platform_machine": platform.machine(),
    "platform_release": platform.release(),
    "platform_system": platform.system(),
    "platform_version": platform.version(),
    "python_full_version": platform.python_version(),
    "platform_python_implementation": platform.python_implementation(),
    "python_version": "%d.%d" % sys.version_info[:2],
    "sys_platform": sys.platform,
}
found = [(d.metadata["Name"], d.version, d.requires or []) for d in distributions()]
print(json.dumps([markers, found[::-1]]))
"""

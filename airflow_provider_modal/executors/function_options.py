"""What of a deployed function does one task want otherwise?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class FunctionOptions:
    """Arguments of ``modal.Function.with_options``. Hashable: equal ones share containers, and one look-up.

    :param gpu: in Modal's own words, such as ``H100`` or ``A10G:2``.
    :param cpu: cores, or (request, limit).
    :param memory: (request, limit) in MiB. Both, because Modal merges resources field by field: a request
        alone would leave the base function's limit, which may be lower.
    :param region: regions that Modal may choose from.
    :param secrets: names of all Secrets of the containers. Modal replaces the base function's by them, so
        they have to name those, too.
    :param timeout: Modal's limit for the call, in seconds.
    """

    gpu: str | None = None
    cpu: float | tuple[float, float] | None = None
    memory: tuple[int, int] | None = None
    region: tuple[str, ...] = ()
    cloud: str | None = None
    secrets: tuple[str, ...] = ()
    timeout: int | None = None

    def __bool__(self) -> bool:
        """Whether anything is wanted otherwise."""
        return self != FunctionOptions()

    def __str__(self) -> str:
        """Return what is wanted, for people."""
        return ", ".join(f"{name}={value!r}" for name, value in asdict(self).items() if value)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``with_options`` but for the Secrets, which it takes as objects."""
        wanted = {name: value for name, value in asdict(self).items() if value and name != "secrets"}
        if self.region:
            wanted["region"] = list(self.region)
        return wanted

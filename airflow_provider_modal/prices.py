"""What do a container's resources cost at Modal?

List prices of functions, in dollars per second, without what depends on the account: credits, discounts, and
the surcharges for a chosen region or for containers that are not preempted. Containers are billed for what
they reserve, or use if that is more, from their start to their end.
"""

from __future__ import annotations

import difflib

SOURCE = "https://modal.com/pricing"
AS_OF = "2026-10"
"""When they were read."""

CORE_SECOND = 0.0000131
"""A physical core, which is two vCPUs."""
GIB_SECOND = 0.00000222
LEAST_CORES = 0.125
LEAST_MIB = 128
"""What a container reserves at least; Modal's documentation on resources."""

GPU_SECOND = {
    "T4": 0.000164,
    "L4": 0.000222,
    "A10": 0.000306,
    "L40S": 0.000542,
    "A100-40GB": 0.000583,
    "A100-80GB": 0.000694,
    "RTX-PRO-6000": 0.000842,
    "H100": 0.001097,
    "H200": 0.001261,
    "B200": 0.001736,
    "B300": 0.001972,
}
_ALIASES = {"A10G": "A10", "A100": "A100-40GB", "H100!": "H100", "B200+": "B200"}
"""Other names that Modal takes; the last two say what may be given instead, at the same price."""
_UNPRICED = ("ANY",)
"""Names that Modal takes and whose price depends on what it gives."""


def rate(cores: float, mib: float, gpu: str | None = None) -> float | None:
    """Return dollars per second of a container; None if the price of its GPU is not known.

    :param gpu: as Modal takes it: ``"T4"``, ``"H100:2"``.
    """
    price = max(cores, LEAST_CORES) * CORE_SECOND + max(mib, LEAST_MIB) / 1024 * GIB_SECOND
    if not gpu:
        return price
    name, _, count = gpu.upper().partition(":")
    each = GPU_SECOND.get(_ALIASES.get(name, name))
    if each is None or (count and not count.isdigit()):
        return None
    return price + each * int(count or 1)


def is_known_gpu(gpu: str) -> bool:
    """Return whether Modal's list has this GPU."""
    name = gpu.upper().partition(":")[0]
    return name in GPU_SECOND or name in _ALIASES or name in _UNPRICED


def similar_gpus(gpu: str) -> list[str]:
    """Return what somebody may have meant who named a GPU that Modal's list does not have."""
    known = [*GPU_SECOND, *_ALIASES]
    return difflib.get_close_matches(gpu.upper().partition(":")[0], known, n=2, cutoff=0.5)

"""Every assumption, in the order of the report."""

from __future__ import annotations

from cloud.checks import calls, containers, images, objects, volumes
from cloud.findings import Check

ALL: tuple[Check, ...] = (
    *containers.CHECKS,
    *calls.CHECKS,
    *volumes.CHECKS,
    *objects.CHECKS,
    *images.CHECKS,
)

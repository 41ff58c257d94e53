"""Overlay views for tests, each mounted in a container that does nothing."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from local_modal.idle_container import IdleContainer
from local_modal.volumes.overlays import Kind, OverlayView, detect

SERVICE_PATH = "/__modal/volumes/vo-1/0"


@functools.cache
def overlay_kind() -> Kind:
    """The kind that works here; skips the test if none does."""
    with tempfile.TemporaryDirectory() as directory:
        kind = asyncio.run(detect(sys.executable, Path(directory)))
    if isinstance(kind, str):
        if os.environ.get("CI"):
            pytest.fail(f"overlays are needed in CI: {kind}")
        pytest.skip(f"overlays can't be mounted here: {kind}")
    return kind


class MountedOverlay(OverlayView):
    """An `OverlayView` that is mounted as soon as it is open."""

    container: IdleContainer | None = None

    @property
    def inside(self) -> Path:
        """The mount, from outside."""
        assert self.container is not None
        return self.container.mount

    @property
    def upper(self) -> Path:
        """The directory with the container's writes."""
        assert self.bound.layers is not None
        return Path(self.bound.layers.upper)

    def open(self) -> None:
        super().open()
        scratch = self._directory.with_name(f"{self._directory.name}.container")
        scratch.mkdir()
        self.container = IdleContainer(self.bound, scratch)

    def reload(self, pids: Iterable[int]) -> None:
        assert self.container is not None
        super().reload([*pids, self.container.pid])

    def close(self) -> None:
        if self.container is not None:
            self.container.close()
            self.container = None
        super().close()

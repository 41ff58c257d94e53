"""Overlay views for tests, each mounted in a container that does nothing."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from local_modal.isolation import LAUNCHER, Interpreter, bare_spec, inspect_interpreter
from local_modal.volumes.overlays import Kind, OverlayView, detect
from local_modal.volumes.store import VolumeStore
from local_modal.volumes.trees import Trees
from local_modal.volumes.views import BoundView

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


@functools.cache
def interpreter() -> Interpreter:
    """The one that runs the tests."""
    return asyncio.run(inspect_interpreter(sys.executable))


class MountedOverlay(OverlayView):
    """An `OverlayView` that is mounted as soon as it is open."""

    def __init__(
        self, store: VolumeStore, trees: Trees, kind: Kind, bound: BoundView, directory: Path, sub_path: str
    ) -> None:
        super().__init__(store, trees, kind, bound, directory, sub_path)
        self._spec = directory.with_name(directory.name + ".json")
        self._launcher: subprocess.Popen[str] | None = None
        self.pid = 0
        """Of a process in the container."""

    @property
    def inside(self) -> Path:
        """The mount, from outside."""
        return Path(f"/proc/{self.pid}/root{SERVICE_PATH}")

    @property
    def upper(self) -> Path:
        """The directory with the container's writes."""
        assert self.bound.layers is not None
        return Path(self.bound.layers.upper)

    def open(self) -> None:
        super().open()
        scratch = self._spec.with_suffix(".root")
        scratch.mkdir()
        modal = self._spec.with_suffix(".modal")
        modal.mkdir()
        spec = bare_spec(
            interpreter(),
            scratch,
            [{"target": "/__modal", "source": str(modal)}, *self.bound.binds()],
            overlays=[self.bound.overlay()],
            module="timeit",
            argv=["-n1", "-r1", "print(flush=True); input()"],
        )
        self._spec.write_text(json.dumps(spec))
        self._launcher = subprocess.Popen(
            [sys.executable, str(LAUNCHER), str(self._spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._launcher.stdout is not None
        assert self._launcher.stdout.readline() == "\n"
        self.pid = _only_child(_only_child(self._launcher.pid))

    def reload(self, pids: Iterable[int]) -> None:
        super().reload([*pids, self.pid])

    def close(self) -> None:
        if self._launcher is not None:
            self._launcher.communicate("\n")
            self._launcher = None
        super().close()


def _only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())

"""A container that only has a view of a volume mounted, without a server: for tests and measurements of
volumes."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
from pathlib import Path

from local_modal.isolation import LAUNCHER, Interpreter, bare_spec, inspect_interpreter
from local_modal.volumes.views import BoundView


class IdleContainer:
    """Runs until `close`.

    Args:
        view: what to mount.
        scratch: an empty directory.
    """

    def __init__(self, view: BoundView, scratch: Path) -> None:
        for name in ("root", "modal"):
            (scratch / name).mkdir()
        spec = bare_spec(
            _interpreter(),
            scratch / "root",
            [{"target": "/__modal", "source": str(scratch / "modal")}, *view.binds()],
            overlays=[overlay] if (overlay := view.overlay()) else [],
            module="timeit",  # runs any statement
            argv=["-n1", "-r1", "print(flush=True); input()"],
        )
        (scratch / "spec.json").write_text(json.dumps(spec))
        self._launcher = subprocess.Popen(
            [sys.executable, str(LAUNCHER), str(scratch / "spec.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._launcher.stdout is not None
        if self._launcher.stdout.readline() != "\n":
            raise RuntimeError(f"the container didn't start: exit code {self._launcher.wait()}")
        self.pid = _only_child(_only_child(self._launcher.pid))
        """Of a process in the container."""
        self.mount = Path(f"/proc/{self.pid}/root{view.service_path or view.mount_path}")
        """The view in the container, from outside."""

    def close(self) -> None:
        """End it."""
        self._launcher.communicate("\n")


@functools.cache
def _interpreter() -> Interpreter:
    return asyncio.run(inspect_interpreter(sys.executable))


def _only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())

"""One run of the check: its throw-away apps and objects, from their making to their removal."""

from __future__ import annotations

import importlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

import modal
from modal.exception import NotFoundError


class Session:
    """What checks ask: deployed functions, a Dict, a Queue and a Volume, all named `name`.

    As a context manager it makes them and removes them, whatever happens.

    Args:
        cloud: this is Modal, not a local server.
        say: told what happens, for people.
    """

    def __init__(self, *, cloud: bool, say: Callable[[str], None]) -> None:
        self.cloud = cloud
        self.name = f"cloud-check-{secrets.token_hex(4)}"
        self._say = say
        self._apps: list[tuple[str, modal.App]] = []
        self._lock = threading.Lock()
        self._answers: dict[str, Any] = {}
        self._asking: dict[str, threading.Lock] = {}
        # Before the import of the modules with the apps: they read it.
        os.environ["CLOUD_CHECK_NAME"] = self.name
        self._probes = importlib.import_module("cloud.probes")
        self.deployed_at = 0.0

    def __enter__(self) -> Session:
        try:
            self.notes = modal.Dict.from_name(self.name, create_if_missing=True)
            self.queue = modal.Queue.from_name(self.name, create_if_missing=True)
            self.volume: modal.Volume = self._probes.volume
            for each in (self.notes, self.queue, self.volume):
                each.hydrate()
            self.deploy(self.name, self._probes.app)
            self.deployed_at = time.time()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def deploy(self, name: str, app: modal.App) -> None:
        """Deploy an app that is stopped at the end."""
        with self._lock:
            self._apps.append((name, app))
        app.deploy(name=name)

    def image_probes(self) -> ModuleType:
        """The module with the apps that are deployed on demand."""
        return importlib.import_module("cloud.image_probes")

    def function(self, name: str, app: str = "") -> modal.Function:
        """A deployed function."""
        return modal.Function.from_name(app or self.name, name)

    def once(self, question: str, ask: Callable[[], Any]) -> Any:
        """The answer of the first one that asks, for all who do."""
        with self._lock:
            asking = self._asking.setdefault(question, threading.Lock())
        with asking:
            if question not in self._answers:
                self._answers[question] = ask()
            return self._answers[question]

    def unique(self, prefix: str) -> str:
        """A key, file or partition name of its own."""
        return f"{prefix}-{secrets.token_hex(3)}"

    def wait_for(self, condition: Callable[[], Any], seconds: float, every: float = 0.1) -> Any:
        """The condition's first true answer; its last one, if that takes longer."""
        deadline = time.monotonic() + seconds
        while not (answer := condition()) and time.monotonic() < deadline:
            time.sleep(every)
        return answer

    def _remove(self) -> None:
        removals: list[tuple[str, Callable[[], object]]] = [
            *((f"app {name}", lambda name=name: _stop_app(name)) for name, _ in self._apps),
            (f"dict {self.name}", lambda: modal.Dict.objects.delete(self.name)),
            (f"queue {self.name}", lambda: modal.Queue.objects.delete(self.name)),
            (f"volume {self.name}", lambda: modal.Volume.objects.delete(self.name)),
        ]
        for what, remove in removals:
            try:
                remove()
            except NotFoundError:
                pass  # it had not been made yet
            except Exception as error:
                self._say(f"{what} could not be removed, please do it by hand: {error}")


def _stop_app(name: str) -> None:
    app = modal.App.lookup(name)
    if hasattr(app, "stop"):
        app.stop()
    else:  # modal 1.5
        from modal.experimental import stop_app

        stop_app(name)

"""What user code really did, told to somebody outside Airflow and Modal."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Any


class Recorder:
    """Takes one JSON object a connection over TCP; a task that says ``wait`` is held until it is released.

    The connection of a held task is answered with a line when ``release`` is called for its event; it ends
    without an answer when the task's container dies.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._released: set[str] = set()
        recorder = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                line = self.rfile.readline()
                if line:
                    recorder._take(json.loads(line), self.wfile.write)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        """The port that tasks connect to."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening and release everybody."""
        with self._changed:
            self._released.add("*")
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def release(self, event: str) -> None:
        """Let the tasks go on that wait with this event, now and later."""
        with self._changed:
            self._released.add(event)
            self._changed.notify_all()

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the records with this event, in the order in which they came."""
        with self._changed:
            return [record for record in self.records if record["event"] == event]

    def wait_for(self, event: str, count: int = 1, timeout: float = 180) -> list[dict[str, Any]]:
        """Wait until an event was recorded ``count`` times and return these records."""

        def found() -> bool:
            return sum(record["event"] == event for record in self.records) >= count

        with self._changed:
            if not self._changed.wait_for(found, timeout):
                raise AssertionError(
                    f"{event!r} was not recorded {count} times in {timeout} s: {self.records}"
                )
        return self.events(event)

    def _take(self, record: dict[str, Any], answer: Callable[[bytes], object]) -> None:
        with self._changed:
            self.records.append({**record, "at": time.time()})
            self._changed.notify_all()
            if record.get("wait"):
                self._changed.wait_for(lambda: {record["event"], "*"} & self._released)
        try:
            answer(b"go\n")
        except OSError:
            pass  # the container is gone; that is what some tests are about

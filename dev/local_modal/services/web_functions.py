"""The ports of web functions: which function has which, in use from its deployment to its end.

A port belongs to a name (environment, app, function), as a URL does in Modal's cloud: it is the same after a
redeployment, after the app was stopped and deployed again, and after a restart of the server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from aiohttp import web
from modal_proto import api_pb2 as api

from local_modal.front_door import FrontDoor
from local_modal.model import App
from local_modal.rpc import Service

log = logging.getLogger(__name__)

TABLE = "web_ports"
HOST = "127.0.0.1"
"""Never another address: everybody who reaches a web function may call it."""
BACKLOG = 1024
MAX_LINE_BYTES = 64 * 1024
"""Of a request's first line and of each header: as much as the SDK's own proxy takes (`_runtime/asgi.py`)."""
STOP_SECONDS = 0.1
"""How long they may go on when the server stops; for aiohttp 0 means for ever."""
CLOSE_SECONDS = 60.0
"""How long requests may go on once their function is gone."""


@dataclass
class _Door:
    app_id: str
    deployed_id: str
    """The function that serves it now."""
    coming_id: str
    """The function that serves it from the app's next publish on; nearly always the same."""
    method_name: str
    listener: socket.socket
    """Bound from the moment when its URL is known, listening from the app's publish."""
    server: web.Server | None = None
    runner: web.ServerRunner | None = None

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


class WebFunctionService(Service):
    """Assigns URLs to functions, opens and closes their ports; serves no RPC itself."""

    async def start(self) -> None:
        """Open the ports of all apps that are deployed."""
        self._ports = {key: int(port) for key, port in self.server.store.load(TABLE).items()}
        self._doors: dict[str, _Door] = {}
        self._servers: set[web.Server] = set()
        self._closing: set[asyncio.Future[None]] = set()
        for app in self.server.apps.apps.values():
            for record in self.server.functions.of(app):
                if record.definition is not None and any(_web_configs(record.definition)):
                    self.assign(app, record.handle, record.function_id, record.definition)
                    self.server.functions.keep(record)
            await self.publish(app)

    async def stop(self) -> None:
        """Close all ports."""
        # Whoever still waits would wait for containers that have ended.
        await asyncio.gather(*(server.shutdown(STOP_SECONDS) for server in self._servers))
        for door in self._doors.values():
            if door.runner is not None:
                await door.runner.cleanup()
        await asyncio.gather(*self._closing)

    # -- for functions and apps

    def assign(
        self,
        app: App,
        handle: api.FunctionHandleMetadata,
        function_id: str,
        source: api.FunctionPrecreateRequest | api.Function,
    ) -> None:
        """Give a function and its web methods their URLs: in its handle, and in `source` if that is the
        definition.
        """
        for method_name, config in _web_configs(source):
            if not method_name:
                handle.web_url = self._door(app, function_id, source.function_name, "").url
                if isinstance(source, api.Function):
                    source.web_url = handle.web_url
                _note_domains(source.function_name, config)
                continue
            method = source.method_definitions[method_name]
            method.web_url = self._door(app, function_id, method.function_name, method_name).url
            handle.method_handle_metadata[method_name].web_url = method.web_url
            _note_domains(method.function_name, config)

    async def publish(self, app: App) -> None:
        """Open the ports of an app's functions as they are now deployed; close those of functions that have
        become others.
        """
        wanted = set()
        for record in self.server.functions.of(app):
            if record.definition is not None:
                wanted |= {(record.function_id, name) for name, _ in _web_configs(record.definition)}
        for key, door in list(self._doors.items()):
            if door.app_id != app.app_id:
                continue
            if (door.coming_id, door.method_name) not in wanted:
                self._close(key)
                continue
            door.deployed_id = door.coming_id
            if door.runner is None:
                await self._open(door)

    def close(self, function_id: str) -> None:
        """The function is gone: refuse connections; what runs may end."""
        for key in [key for key, door in self._doors.items() if door.coming_id == function_id]:
            self._close(key)

    # -- doors

    def _door(self, app: App, function_id: str, name: str, method_name: str) -> _Door:
        kind = "run" if app.state == api.APP_STATE_EPHEMERAL else "deploy"
        key = json.dumps([app.environment, kind, app.name or app.description, name])
        door = self._doors.get(key)
        if door is not None and door.app_id != app.app_id:
            # Two runs of one app at the same time.
            key = json.dumps([app.app_id, name])
            door = self._doors.get(key)
        if door is None:
            listener = self._bind(key, name)
            door = _Door(app.app_id, function_id, function_id, method_name, listener)
            self._doors[key] = door
        door.coming_id = function_id
        return door

    def _bind(self, key: str, name: str) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        # Connections of a former server may linger on the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = self._ports.get(key, 0)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            listener.bind((HOST, 0))
            log.warning(
                "The web function %s has a new URL: its port %d can't be used any more (%s)",
                name,
                port,
                error.strerror,
            )
        self._ports[key] = listener.getsockname()[1]
        self.server.store.put(TABLE, key, str(self._ports[key]).encode())
        return listener

    async def _open(self, door: _Door) -> None:
        front = FrontDoor(self.server, door.method_name, lambda: door.deployed_id)
        door.server = web.Server(
            front.handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,  # bodies are the app's business
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
        )
        self._servers.add(door.server)
        door.runner = web.ServerRunner(door.server, shutdown_timeout=CLOSE_SECONDS)
        await door.runner.setup()
        await web.SockSite(door.runner, door.listener, backlog=BACKLOG).start()

    def _close(self, key: str) -> None:
        door = self._doors.pop(key)
        if door.runner is None:
            door.listener.close()
            return
        closing = asyncio.ensure_future(self._run_out(door.runner))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _run_out(self, runner: web.ServerRunner) -> None:
        """Close the port at once and the connections when their requests have ended."""
        await runner.cleanup()
        self._servers = {server for server in self._servers if server.connections}


def _web_configs(
    source: api.FunctionPrecreateRequest | api.Function,
) -> Iterator[tuple[str, api.WebhookConfig]]:
    """(method name or "", config) for everything in a definition that has a URL."""
    if source.webhook_config.type != api.WEBHOOK_TYPE_UNSPECIFIED:
        yield "", source.webhook_config
    for name, method in source.method_definitions.items():
        if method.webhook_config.type != api.WEBHOOK_TYPE_UNSPECIFIED:
            yield name, method.webhook_config


def _note_domains(name: str, config: api.WebhookConfig) -> None:
    if config.custom_domains:
        log.warning("%s: custom domains mean nothing to a local Modal server", name)

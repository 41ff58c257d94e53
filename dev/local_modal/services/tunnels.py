"""`modal.forward`: ports of containers that are reached from outside, for as long as the container asks."""

from __future__ import annotations

import asyncio

from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal.certificates import Certificates
from local_modal.model import Task
from local_modal.rpc import RpcError, Service, container_caller
from local_modal.tunnels import HOST, Forwarder


class TunnelService(Service):
    """TunnelStart and TunnelStop."""

    async def start(self) -> None:
        """Make the authority, so that clients can be told of it before there is a tunnel."""
        self._certificates = Certificates(self.server.state_dir / "tls")
        self._tunnels: dict[str, dict[int, list[Forwarder]]] = {}
        """By container and by the port that it forwards."""
        self._stopped: dict[str, list[Forwarder]] = {}
        """By container: their connections may still be there."""
        self._making = asyncio.Lock()
        if self._certificates.possible:
            await asyncio.to_thread(self._certificates.make_authority)

    @property
    def ca_file(self) -> str | None:
        """What clients of tunnels must trust; None if TLS is impossible here."""
        return str(self._certificates.ca_file) if self._certificates.possible else None

    async def stop(self) -> None:
        """Cut off what is left."""
        for task_id in list(self._tunnels):
            self._end(task_id)

    async def TunnelStart(self, request: api.TunnelStartRequest) -> api.TunnelStartResponse:
        task_id = container_caller()
        task = self.server.engine.tasks.get(task_id)
        if task is None:
            raise RpcError(Status.NOT_FOUND, f"Container {task_id} has ended.")
        if request.port in self._tunnels.get(task_id, {}):  # the SDK makes an InvalidError of it
            raise RpcError(Status.ALREADY_EXISTS, f"Port {request.port} is already forwarded.")
        if not self._certificates.possible:
            raise RpcError(
                Status.FAILED_PRECONDITION,
                "modal.forward needs the package `cryptography` beside the local Modal server, to make "
                "certificates for its TLS: pip install cryptography",
            )
        protocols = ["h2", "http/1.1"] if request.tunnel_type == api.TUNNEL_TYPE_H2 else []
        async with self._making:
            context = await asyncio.to_thread(self._certificates.context, protocols)
        forwarders = [Forwarder(request.port, context)]
        if request.unencrypted:
            forwarders.append(Forwarder(request.port))
        if task_id not in self._tunnels:
            self.server.engine.spawn_background(self._until_exit(task))
        self._tunnels.setdefault(task_id, {})[request.port] = forwarders
        for forwarder in forwarders:
            await forwarder.start()
        response = api.TunnelStartResponse(host=HOST, port=forwarders[0].port)
        if request.unencrypted:
            response.unencrypted_host, response.unencrypted_port = HOST, forwarders[1].port
        return response

    async def TunnelStop(self, request: api.TunnelStopRequest) -> api.TunnelStopResponse:
        task_id = container_caller()
        forwarders = self._tunnels.get(task_id, {}).pop(request.port, None)
        for forwarder in forwarders or []:
            forwarder.close()
            self._stopped.setdefault(task_id, []).append(forwarder)
        return api.TunnelStopResponse(exists=forwarders is not None)

    async def _until_exit(self, task: Task) -> None:
        await task.exited.wait()
        self._end(task.task_id)

    def _end(self, task_id: str) -> None:
        present = list(self._tunnels.pop(task_id, {}).values())
        for forwarders in [*present, self._stopped.pop(task_id, [])]:
            for forwarder in forwarders:
                forwarder.abort()

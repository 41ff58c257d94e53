"""Environments: the namespaces of all named objects. The default one is called `main`. Also the greeting with
which a client checks that the server is there.
"""

from __future__ import annotations

import json
import re

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal import ids
from local_modal.rpc import RpcError, Service, build

DEFAULT = "main"
IMAGE_BUILDER_VERSION = "2025.06"
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")
TABLE = "environments"


class EnvironmentService(Service):
    """Environment* RPCs, ClientHello, and `resolve` for every service that keeps named objects."""

    async def start(self) -> None:
        self._created: dict[str, tuple[str, float]] = {}
        for name, record in self.server.store.load(TABLE).items():
            fields = json.loads(record)
            self._created[name] = (fields["environment_id"], fields["created_at"])
        if DEFAULT not in self._created:
            self._add(DEFAULT)

    def resolve(self, name: str) -> str:
        """The environment that `name` means; "" is the default one.

        Raises:
            RpcError: NOT_FOUND, there is no such environment.
        """
        name = name or DEFAULT
        if name not in self._created:
            raise RpcError(
                Status.NOT_FOUND,
                f"Environment '{name}' not found: create it with `modal environment create {name}`.",
            )
        return name

    async def ClientHello(self, request: Empty) -> api.ClientHelloResponse:
        return api.ClientHelloResponse(image_builder_version=IMAGE_BUILDER_VERSION)

    async def EnvironmentGetOrCreate(
        self, request: api.EnvironmentGetOrCreateRequest
    ) -> api.EnvironmentGetOrCreateResponse:
        if request.deployment_name and request.object_creation_type in (
            api.OBJECT_CREATION_TYPE_CREATE_IF_MISSING,
            api.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS,
        ):
            if request.deployment_name not in self._created:
                self._add(request.deployment_name)
            elif request.object_creation_type == api.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
                raise RpcError(
                    Status.ALREADY_EXISTS, f"Environment '{request.deployment_name}' exists already."
                )
        name = self.resolve(request.deployment_name)
        return api.EnvironmentGetOrCreateResponse(
            environment_id=self._created[name][0],
            metadata=api.EnvironmentMetadata(
                name=name, settings=api.EnvironmentSettings(image_builder_version=IMAGE_BUILDER_VERSION)
            ),
        )

    async def EnvironmentCreate(self, request: api.EnvironmentCreateRequest) -> Empty:
        if request.name in self._created:
            raise RpcError(Status.ALREADY_EXISTS, f"Environment '{request.name}' exists already.")
        self._add(request.name)
        return Empty()

    async def EnvironmentList(self, request: Empty) -> api.EnvironmentListResponse:
        return api.EnvironmentListResponse(
            items=[
                build(
                    api.EnvironmentListItem,
                    name=name,
                    created_at=created_at,
                    default=name == DEFAULT,
                    environment_id=environment_id,
                    image_builder_version=IMAGE_BUILDER_VERSION,
                )
                for name, (environment_id, created_at) in self._created.items()
            ]
        )

    def _add(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise RpcError(
                Status.INVALID_ARGUMENT,
                f"Invalid environment name '{name}': up to 64 letters, digits, dashes, dots and underscores.",
            )
        environment_id, created_at = ids.new_id(ids.ENVIRONMENT), self.server.clock.time()
        record = {"environment_id": environment_id, "created_at": created_at}
        self.server.store.put(TABLE, name, json.dumps(record).encode())
        self._created[name] = (environment_id, created_at)

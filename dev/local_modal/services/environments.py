"""Environments: the namespaces of all named objects. The default one is called `main`. Also the greeting with
which a client checks that the server is there.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal import ids
from local_modal.objects import Objects
from local_modal.rpc import RpcError, Service, build

DEFAULT = "main"
IMAGE_BUILDER_VERSION = "2025.06"
NAME = re.compile(r"(?!en-)[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}", re.IGNORECASE)
"""The rule for new names of `modal/_utils/name_utils.py`: "en-" begins an environment's id."""
MAX_ENVIRONMENTS = 1500
"""Per workspace, says Modal's guide to environments."""
TABLE = "environments"


@dataclass(frozen=True)
class Environment:
    """An environment; its name may change."""

    environment_id: str
    created_at: float
    web_suffix: str = ""


class EnvironmentService(Service):
    """Environment* RPCs, ClientHello, and `resolve` for every service that keeps named objects."""

    async def start(self) -> None:
        self._created = {
            name: Environment(**json.loads(data)) for name, data in self.server.store.load(TABLE).items()
        }
        if DEFAULT not in self._created:
            self._add(DEFAULT)

    def resolve(self, name: str) -> str:
        """The name of the environment that `name`, which may be its id, means; "" is the default one.

        Raises:
            RpcError: NOT_FOUND, there is no such environment.
        """
        name = name or DEFAULT
        if name in self._created:
            return name
        for known, environment in self._created.items():
            if environment.environment_id == name:
                return known
        raise RpcError(
            Status.NOT_FOUND,
            f"Environment '{name}' not found: create it with `modal environment create {name}`.",
        )

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
                    Status.ALREADY_EXISTS, f"Environment '{request.deployment_name}' already exists."
                )
        name = self.resolve(request.deployment_name)
        return api.EnvironmentGetOrCreateResponse(
            environment_id=self._created[name].environment_id,
            metadata=api.EnvironmentMetadata(
                name=name, settings=api.EnvironmentSettings(image_builder_version=IMAGE_BUILDER_VERSION)
            ),
        )

    async def EnvironmentCreate(self, request: api.EnvironmentCreateRequest) -> Empty:
        self._add(request.name)
        return Empty()

    async def EnvironmentList(self, request: Empty) -> api.EnvironmentListResponse:
        return api.EnvironmentListResponse(items=[self._item(name) for name in self._created])

    async def EnvironmentUpdate(self, request: api.EnvironmentUpdateRequest) -> api.EnvironmentListItem:
        name = self.resolve(request.current_name)
        if "image_builder_version" in {descriptor.name for descriptor, _ in request.ListFields()}:
            raise RpcError(
                Status.INVALID_ARGUMENT,
                f"The image builder version is always {IMAGE_BUILDER_VERSION} with the local Modal server.",
            )
        if request.HasField("web_suffix"):
            self._save(name, replace(self._created[name], web_suffix=request.web_suffix.value))
        if request.HasField("name") and request.name.value != name:
            self._rename(name, request.name.value)
            name = request.name.value
        return self._item(name)

    async def EnvironmentDelete(self, request: api.EnvironmentDeleteRequest) -> Empty:
        name = self.resolve(request.name)
        self._refuse_default(name, "deleted")
        # First the name, so that nothing new is made in there meanwhile.
        self.server.store.delete(TABLE, name)
        del self._created[name]
        await self.server.apps.end_environment(name)
        for objects in self._objects():
            await objects.delete_environment(name)
        return Empty()

    def _item(self, name: str) -> api.EnvironmentListItem:
        environment = self._created[name]
        return build(
            api.EnvironmentListItem,
            name=name,
            webhook_suffix=environment.web_suffix,
            created_at=environment.created_at,
            default=name == DEFAULT,
            environment_id=environment.environment_id,
            image_builder_version=IMAGE_BUILDER_VERSION,
        )

    def _rename(self, old: str, new: str) -> None:
        self._refuse_default(old, "renamed")
        self._check_new(new)
        with self.server.store.transaction():
            self.server.store.delete(TABLE, old)
            self._save(new, self._created.pop(old))
            self.server.apps.rename_environment(old, new)
            for objects in self._objects():
                objects.rename_environment(old, new)

    def _objects(self) -> list[Objects]:
        server = self.server
        return [service.objects for service in (server.dicts, server.queues, server.secrets, server.volumes)]

    @staticmethod
    def _refuse_default(name: str, change: str) -> None:
        # Every look-up without a name ends there. That the cloud refuses as well is an assumption.
        if name == DEFAULT:
            raise RpcError(Status.FAILED_PRECONDITION, f"The default environment '{name}' can't be {change}.")

    def _check_new(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise RpcError(
                Status.INVALID_ARGUMENT,
                f"Invalid environment name '{name}': up to 64 letters, digits, dashes and underscores, "
                "the first one a letter or digit, and not beginning with 'en-'.",
            )
        if name in self._created:
            raise RpcError(Status.ALREADY_EXISTS, f"Environment '{name}' already exists.")

    def _add(self, name: str) -> None:
        self._check_new(name)
        if len(self._created) >= MAX_ENVIRONMENTS:
            raise RpcError(
                Status.RESOURCE_EXHAUSTED, f"A workspace can have {MAX_ENVIRONMENTS} environments at most."
            )
        self._save(name, Environment(ids.new_id(ids.ENVIRONMENT), self.server.clock.time()))

    def _save(self, name: str, environment: Environment) -> None:
        self.server.store.put(TABLE, name, json.dumps(asdict(environment)).encode())
        self._created[name] = environment

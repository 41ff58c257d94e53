"""Secrets: environment variables for containers. Values are kept in files of their own, readable by the owner
only, and never logged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from modal_proto import api_pb2

from local_modal.ids import SECRET
from local_modal.objects import Objects, Record
from local_modal.rpc import RpcError, build
from local_modal.services.named import ObjectService

if TYPE_CHECKING:
    from local_modal.server import Server


class SecretService(ObjectService):
    """The Secret RPCs. Containers get the values at their start, so an update reaches new containers only."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.objects = Objects(server, SECRET, "Secret", self._drop, can_overwrite=True)
        self._directory = server.state_dir / "secrets"
        self._values: dict[str, dict[str, str]] = {}
        self._last_used: dict[str, float] = {}

    async def load(self) -> None:
        """Read all values."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = {record.object_id for record in self.objects.all()}
        for path in self._directory.iterdir():
            if path.name in known:
                self._values[path.name] = json.loads(path.read_text(encoding="utf-8"))
            else:  # died between the values and the record, or in the middle of writing
                path.unlink()
        for secret_id in (
            known - self._values.keys()
        ):  # died before the values were there, so nobody was told of it
            await self.objects.delete(secret_id)

    def environ(self, secret_ids: Iterable[str]) -> dict[str, str]:
        """The variables of these Secrets together; a later Secret's values win.

        Raises:
            RpcError: NOT_FOUND, one of them has been deleted.
        """
        together: dict[str, str] = {}
        for secret_id in secret_ids:
            self.objects.get(secret_id)
            self._last_used[secret_id] = self.server.clock.time()
            together.update(self._values.get(secret_id, {}))
        return together

    async def SecretGetOrCreate(
        self, request: api_pb2.SecretGetOrCreateRequest
    ) -> api_pb2.SecretGetOrCreateResponse:
        values = dict(request.env_dict)
        if request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP:
            # Each deployment sends its anonymous Secrets again; the same content in the same app is the same
            # Secret.
            for record in self.objects.owned_by(request.app_id):
                if self._values.get(record.object_id) == values:
                    return self._got(record)
        record, to_fill = self.objects.get_or_create(
            request.deployment_name,
            request.environment_name,
            request.object_creation_type,
            app_id=request.app_id,
        )
        if to_fill:
            self._keep(record.object_id, values)
        missing = sorted(set(request.required_keys) - set(self._values.get(record.object_id, {})))
        if missing:
            raise RpcError(
                Status.INVALID_ARGUMENT,
                f"Secret '{record.name or record.object_id}' has no key(s) {', '.join(missing)}.",
            )
        return self._got(record)

    async def SecretGetInfo(self, request: api_pb2.SecretGetInfoRequest) -> api_pb2.SecretGetInfoResponse:
        return api_pb2.SecretGetInfoResponse(metadata=self._metadata(self.objects.get(request.secret_id)))

    async def SecretUpdate(self, request: api_pb2.SecretUpdateRequest) -> Empty:
        self.objects.get(request.secret_id)
        values = dict(self._values.get(request.secret_id, {}))
        for update in request.updates:
            if update.HasField("value"):
                values[update.key] = update.value
            else:
                values.pop(update.key, None)
        self._keep(request.secret_id, values)
        return Empty()

    async def SecretDelete(self, request: api_pb2.SecretDeleteRequest) -> Empty:
        await self.objects.delete(request.secret_id)
        return Empty()

    async def SecretList(self, request: api_pb2.SecretListRequest) -> api_pb2.SecretListResponse:
        return api_pb2.SecretListResponse(
            items=[
                api_pb2.SecretListItem(
                    label=record.name,
                    created_at=record.created_at,
                    last_used_at=self._last_used.get(record.object_id, 0.0),
                    environment_name=record.environment,
                    secret_id=record.object_id,
                    metadata=self._metadata(record),
                )
                for record in self.objects.page(request.environment_name, request.pagination)
            ],
            environment_name=self.server.environments.resolve(request.environment_name),
        )

    def _got(self, record: Record) -> api_pb2.SecretGetOrCreateResponse:
        return api_pb2.SecretGetOrCreateResponse(secret_id=record.object_id, metadata=self._metadata(record))

    def _metadata(self, record: Record) -> api_pb2.SecretMetadata:
        return build(
            api_pb2.SecretMetadata,
            name=record.name,
            creation_info=record.creation_info(),
            keys=sorted(self._values.get(record.object_id, {})),
            environment_name=record.environment,
            last_used_at=self._last_used.get(record.object_id, 0.0),
        )

    def _keep(self, secret_id: str, values: Mapping[str, str]) -> None:
        temporary = self._directory / f"{secret_id}.new"
        # The mode is given at creation: a chmod afterwards would leave a moment in which others can open the
        # file.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(dict(values), stream)
        os.rename(temporary, self._directory / secret_id)
        self._values[secret_id] = dict(values)

    async def _drop(self, record: Record) -> None:
        self._values.pop(record.object_id, None)
        self._last_used.pop(record.object_id, None)
        (self._directory / record.object_id).unlink(missing_ok=True)

"""Named, anonymous and ephemeral objects: one registry per kind, the same rules for Dicts, Queues, Secrets
and Volumes.

Names are scoped by environment. An anonymous object belongs to an app and goes with it; an ephemeral one goes
when its creator stops sending heartbeats.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from grpclib.const import Status
from modal_proto import api_pb2

from local_modal.ids import new_id
from local_modal.rpc import RpcError

if TYPE_CHECKING:
    from local_modal.server import Server

log = logging.getLogger(__name__)

CREATED_BY = "local"
HEARTBEAT_SECONDS = 300.0
"""The SDK's interval (`modal/_object.py`, EPHEMERAL_OBJECT_HEARTBEAT_SLEEP)."""
EPHEMERAL_LIFETIME = 3 * HEARTBEAT_SECONDS
REAPER_INTERVAL = 60.0
MAX_PAGE = 100
NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
APP_ID = re.compile(r"ap-[a-zA-Z0-9]{22}")
"""The SDK's rules for names (`modal/_utils/name_utils.py`); that the cloud checks them again is assumed."""


@dataclass(frozen=True)
class Record:
    """What is known of an object, apart from its contents."""

    object_id: str
    name: str
    """The empty string if it has none."""
    environment: str
    created_at: float
    """Epoch seconds; no two objects of a kind share it, because lists are paged by it."""
    app_id: str = ""
    """The app that an anonymous object belongs to."""
    last_heartbeat: float | None = None
    """None unless ephemeral."""
    version: int = 0
    """Of a Volume's file system; 0 for other kinds."""

    def creation_info(self) -> api_pb2.CreationInfo:
        """As every metadata message has it."""
        return api_pb2.CreationInfo(created_at=self.created_at, created_by=CREATED_BY)


class Objects:
    """All objects of one kind, written through to the store.

    Args:
        server: for its store, clock and environments.
        prefix: of the object ids, such as `di`.
        label: the kind's name in error messages, such as `Dict`.
        on_delete: is called with the record after it is gone, to drop the contents; while it runs nobody can
        find the object any more. can_overwrite: whether CREATE_OVERWRITE_IF_EXISTS makes sense.
    """

    def __init__(
        self,
        server: Server,
        prefix: str,
        label: str,
        on_delete: Callable[[Record], Awaitable[None]],
        *,
        can_overwrite: bool = False,
    ) -> None:
        self._server = server
        self._prefix = prefix
        self._label = label
        self._on_delete = on_delete
        self._can_overwrite = can_overwrite
        self._table = f"objects_{prefix}"
        self._records: dict[str, Record] = {}
        self._named: dict[tuple[str, str], str] = {}
        self._last_created = 0.0
        self._reaper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the records and begin to remove ephemeral objects whose heartbeats have stopped."""
        for value in self._server.store.load(self._table).values():
            self._remember(Record(**json.loads(value)))
        self._reaper = asyncio.create_task(self._reap())

    async def stop(self) -> None:
        """End the background work."""
        if self._reaper is not None:
            self._reaper.cancel()

    def get(self, object_id: str) -> Record:
        """The object with this id.

        Raises:
            RpcError: NOT_FOUND.
        """
        record = self._records.get(object_id)
        if record is None:
            raise RpcError(Status.NOT_FOUND, f"{self._label} with ID '{object_id}' not found.")
        return record

    def find(self, name: str, environment_name: str) -> Record | None:
        """The object of this name in an environment ("" = the default one), or None."""
        object_id = self._named.get((self._server.environments.resolve(environment_name), name))
        return self._records[object_id] if object_id else None

    def get_or_create(
        self,
        name: str,
        environment_name: str,
        creation_type: api_pb2.ObjectCreationType.ValueType,
        *,
        app_id: str = "",
        version: int = 0,
    ) -> tuple[Record, bool]:
        """The object and whether it has just been made (or, with OVERWRITE, is to be filled anew).

        Raises:
            RpcError: NOT_FOUND for a look-up in vain (or an unknown environment), ALREADY_EXISTS,
                INVALID_ARGUMENT for a request that makes no sense.
        """
        environment = self._server.environments.resolve(environment_name)
        if creation_type == api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL:
            now = self._server.clock.time()
            return self._create(Record("", "", environment, 0.0, last_heartbeat=now, version=version)), True
        if creation_type == api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP:
            return self._create(Record("", "", environment, 0.0, app_id=app_id, version=version)), True
        overwrite = creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS
        if overwrite and not self._can_overwrite:
            raise RpcError(
                Status.INVALID_ARGUMENT, f"A {self._label} can't be overwritten by creating it again."
            )
        if not name:
            raise RpcError(
                Status.INVALID_ARGUMENT, f"A {self._label} that is looked up or shared needs a name."
            )
        existing = self.find(name, environment)
        if existing is None:
            if creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise RpcError(
                    Status.NOT_FOUND, f"{self._label} '{name}' not found in environment '{environment}'."
                )
            self._check_name(name)
            return self._create(Record("", name, environment, 0.0, version=version)), True
        if creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise RpcError(
                Status.ALREADY_EXISTS,
                f"{self._label} '{name}' already exists in environment '{environment}'.",
            )
        return existing, overwrite

    def page(self, environment_name: str, pagination: api_pb2.ListPagination) -> list[Record]:
        """A page of the named objects of an environment, newest first."""
        environment = self._server.environments.resolve(environment_name)
        before = pagination.created_before or float("inf")
        found = [
            self._records[object_id]
            for (in_environment, _), object_id in self._named.items()
            if in_environment == environment and self._records[object_id].created_at < before
        ]
        found.sort(key=lambda record: record.created_at, reverse=True)
        return found[: pagination.max_objects or MAX_PAGE]

    def owned_by(self, app_id: str) -> list[Record]:
        """The anonymous objects of an app."""
        return [record for record in self._records.values() if app_id and record.app_id == app_id]

    def all(self) -> list[Record]:
        """Every object, named or not."""
        return list(self._records.values())

    def rename(self, object_id: str, name: str) -> None:
        """Give a named object another name.

        Raises:
            RpcError: NOT_FOUND; ALREADY_EXISTS, the name is taken; INVALID_ARGUMENT, the object has no name.
        """
        record = self.get(object_id)
        if not record.name or not name:
            raise RpcError(Status.INVALID_ARGUMENT, f"Only a named {self._label} can be renamed, to a name.")
        if name == record.name:
            return
        self._check_name(name)
        if (record.environment, name) in self._named:
            raise RpcError(
                Status.ALREADY_EXISTS,
                f"{self._label} '{name}' already exists in environment '{record.environment}'.",
            )
        del self._named[record.environment, record.name]
        self._save(replace(record, name=name))

    def heartbeat(self, object_id: str) -> None:
        """Keep an ephemeral object alive.

        Raises:
            RpcError: NOT_FOUND, it has expired.
        """
        record = self.get(object_id)
        if record.last_heartbeat is not None:
            self._save(replace(record, last_heartbeat=self._server.clock.time()))

    async def delete(self, object_id: str) -> None:
        """Remove an object and its contents.

        Raises:
            RpcError: NOT_FOUND.
        """
        record = self.get(object_id)
        self._server.store.delete(self._table, object_id)
        del self._records[object_id]
        if record.name:
            self._named.pop((record.environment, record.name), None)
        await self._on_delete(record)

    async def release_app(self, app_id: str) -> None:
        """Remove the anonymous objects of an app that has ended."""
        for record in self.owned_by(app_id):
            await self.delete(record.object_id)

    async def delete_environment(self, environment: str) -> None:
        """Remove everything, named or not, that is in an environment."""
        for record in list(self._records.values()):
            if record.environment == environment:
                await self.delete(record.object_id)

    def rename_environment(self, old: str, new: str) -> None:
        """The environment `old` is called `new` from now on; names in it stay taken."""
        for record in list(self._records.values()):
            if record.environment == old:
                self._named.pop((old, record.name), None)
                self._save(replace(record, environment=new))

    def clients_alive(self, seconds: float) -> None:
        """The clock has been advanced by `seconds`: nobody could send heartbeats meanwhile."""
        for record in list(self._records.values()):
            if record.last_heartbeat is not None:
                self._save(replace(record, last_heartbeat=record.last_heartbeat + seconds))

    async def expire(self) -> None:
        """Remove the ephemeral objects whose creator has gone."""
        oldest = self._server.clock.time() - EPHEMERAL_LIFETIME
        for record in list(self._records.values()):
            if record.last_heartbeat is not None and record.last_heartbeat < oldest:
                await self.delete(record.object_id)

    def _check_name(self, name: str) -> None:
        if not NAME.fullmatch(name) or APP_ID.fullmatch(name):
            raise RpcError(
                Status.INVALID_ARGUMENT,
                f"Invalid {self._label} name: '{name}'. Up to 64 letters, digits, dashes, periods and "
                "underscores, and not an App's ID.",
            )

    async def _reap(self) -> None:
        while True:
            await self._server.clock.sleep(REAPER_INTERVAL)
            try:
                await self.expire()
            except Exception:
                # One object that can't be dropped must not keep the others for ever.
                log.exception(
                    "Removing expired %ss failed; trying again in %.0f s", self._label, REAPER_INTERVAL
                )

    def _create(self, template: Record) -> Record:
        created_at = max(self._server.clock.time(), self._last_created + 1e-6)
        record = replace(template, object_id=new_id(self._prefix), created_at=created_at)
        self._save(record)
        return record

    def _save(self, record: Record) -> None:
        self._server.store.put(self._table, record.object_id, json.dumps(asdict(record)).encode())
        self._remember(record)

    def _remember(self, record: Record) -> None:
        self._records[record.object_id] = record
        self._last_created = max(self._last_created, record.created_at)
        if record.name:
            self._named[record.environment, record.name] = record.object_id

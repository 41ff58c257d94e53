"""Dicts: keys and values are opaque pickles, keys are compared byte by byte, as on Modal."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from modal_proto import api_pb2

from local_modal.ids import DICT
from local_modal.objects import Objects, Record
from local_modal.rpc import RpcError
from local_modal.services.named import ObjectService

if TYPE_CHECKING:
    from local_modal.server import Server

ENTRY_LIFETIME = 7 * 24 * 3600.0
"""Seconds without a read or write after which an entry expires (`modal/dict.py`)."""
TOUCH_INTERVAL = 3600.0
"""Reads less than this many seconds after the recorded use don't write a new time, so that reading doesn't
cost a write each."""
MAX_REPORTED_LENGTH = 100_000
"""`Dict.len` returns at most this (`modal/dict.py`)."""
MAX_ENTRIES_PER_UPDATE = 10_000
MAX_VALUE_BYTES = 100 * 2**20
"""Modal's guide to Dicts names both limits, and recommends values below 5 MiB."""
TOO_LARGE = "Received :status = '413'"
"""What a request that is too large looks like to the SDK, which looks for it (`modal/dict.py`,
`modal/queue.py`)."""
PURGE_INTERVAL = 3600.0

_TABLE = "dict_entries"
_LAST_USED = struct.Struct(">d")


class Entries:
    """The contents of one Dict: expiry and put-if-absent, without persistence. Times in epoch seconds are
    given by the caller."""

    def __init__(self) -> None:
        self._entries: dict[bytes, tuple[bytes, float]] = {}

    def get(self, key: bytes, now: float) -> bytes | None:
        """The value, if it is there and hasn't expired."""
        found = self._entries.get(key)
        return found[0] if found is not None and now - found[1] < ENTRY_LIFETIME else None

    def put(self, key: bytes, value: bytes, last_used: float) -> None:
        """Set or replace."""
        self._entries[key] = (value, last_used)

    def touch(self, key: bytes, now: float) -> bool:
        """Note a read; True if the recorded time has become so old that it is to be written down."""
        value, last_used = self._entries[key]
        if now - last_used < TOUCH_INTERVAL:
            return False
        self._entries[key] = (value, now)
        return True

    def remove(self, key: bytes) -> None:
        """Forget a key, which need not be there."""
        self._entries.pop(key, None)

    def live(self, now: float) -> list[tuple[bytes, bytes]]:
        """Keys and values that haven't expired."""
        return [(key, value) for key, (value, used) in self._entries.items() if now - used < ENTRY_LIFETIME]

    def expired(self, now: float) -> list[bytes]:
        """Keys that have."""
        return [key for key, (_, used) in self._entries.items() if now - used >= ENTRY_LIFETIME]

    def keys(self) -> list[bytes]:
        """All keys, expired ones too."""
        return list(self._entries)


class DictService(ObjectService):
    """The Dict RPCs."""

    purge_interval = PURGE_INTERVAL

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.objects = Objects(server, DICT, "Dict", self._drop)
        self._contents: dict[str, Entries] = {}

    async def load(self) -> None:
        """Read all entries."""
        self._contents = {record.object_id: Entries() for record in self.objects.all()}
        for row, value in self.server.store.load(_TABLE).items():
            dict_id, _, key = row.partition("/")
            if dict_id in self._contents:
                (last_used,) = _LAST_USED.unpack_from(value)
                self._contents[dict_id].put(bytes.fromhex(key), value[_LAST_USED.size :], last_used)
            else:  # died between the removal of the Dict and of its contents
                self.server.store.delete(_TABLE, row)

    def purge(self) -> None:
        """Remove entries that have expired from memory and disk; reads never see them anyway."""
        for dict_id, entries in self._contents.items():
            self._remove(dict_id, entries.expired(self.server.clock.time()))

    async def DictGetOrCreate(
        self, request: api_pb2.DictGetOrCreateRequest
    ) -> api_pb2.DictGetOrCreateResponse:
        record, created = self.objects.get_or_create(
            request.deployment_name, request.environment_name, request.object_creation_type
        )
        if created:
            self._contents.setdefault(record.object_id, Entries())
            self._write(record.object_id, request.data)
        return api_pb2.DictGetOrCreateResponse(dict_id=record.object_id, metadata=_metadata(record))

    async def DictGetById(self, request: api_pb2.DictGetByIdRequest) -> api_pb2.DictGetByIdResponse:
        record = self.objects.get(request.dict_id)
        return api_pb2.DictGetByIdResponse(dict_id=record.object_id, metadata=_metadata(record))

    async def DictList(self, request: api_pb2.DictListRequest) -> api_pb2.DictListResponse:
        return api_pb2.DictListResponse(
            dicts=[
                api_pb2.DictListResponse.DictInfo(
                    name=record.name,
                    created_at=record.created_at,
                    dict_id=record.object_id,
                    metadata=_metadata(record),
                )
                for record in self.objects.page(request.environment_name, request.pagination)
            ],
            environment_name=self.server.environments.resolve(request.environment_name),
        )

    async def DictHeartbeat(self, request: api_pb2.DictHeartbeatRequest) -> Empty:
        self.objects.heartbeat(request.dict_id)
        return Empty()

    async def DictDelete(self, request: api_pb2.DictDeleteRequest) -> Empty:
        await self.objects.delete(request.dict_id)
        return Empty()

    async def DictGet(self, request: api_pb2.DictGetRequest) -> api_pb2.DictGetResponse:
        value = self._read(request.dict_id, request.key)
        return api_pb2.DictGetResponse(found=value is not None, value=value)

    async def DictContains(self, request: api_pb2.DictContainsRequest) -> api_pb2.DictContainsResponse:
        return api_pb2.DictContainsResponse(found=self._read(request.dict_id, request.key) is not None)

    async def DictLen(self, request: api_pb2.DictLenRequest) -> api_pb2.DictLenResponse:
        length = len(self._entries(request.dict_id).live(self.server.clock.time()))
        return api_pb2.DictLenResponse(len=min(length, MAX_REPORTED_LENGTH))

    async def DictUpdate(self, request: api_pb2.DictUpdateRequest) -> api_pb2.DictUpdateResponse:
        entries = self._entries(request.dict_id)
        now = self.server.clock.time()
        updates = list(request.updates)
        if request.if_not_exists:
            updates = [update for update in updates if entries.get(update.key, now) is None]
        self._write(request.dict_id, updates)
        return api_pb2.DictUpdateResponse(created=bool(updates))

    async def DictPop(self, request: api_pb2.DictPopRequest) -> api_pb2.DictPopResponse:
        value = self._entries(request.dict_id).get(request.key, self.server.clock.time())
        self._remove(request.dict_id, [request.key])
        return api_pb2.DictPopResponse(found=value is not None, value=value)

    async def DictClear(self, request: api_pb2.DictClearRequest) -> Empty:
        self._remove(request.dict_id, self._entries(request.dict_id).keys())
        return Empty()

    async def DictContents(self, request: api_pb2.DictContentsRequest) -> AsyncIterator[api_pb2.DictEntry]:
        for key, value in self._entries(request.dict_id).live(self.server.clock.time()):
            yield api_pb2.DictEntry(
                key=key if request.keys or not request.values else b"", value=value if request.values else b""
            )

    def _entries(self, dict_id: str) -> Entries:
        self.objects.get(dict_id)
        return self._contents[dict_id]

    def _read(self, dict_id: str, key: bytes) -> bytes | None:
        entries, now = self._entries(dict_id), self.server.clock.time()
        value = entries.get(key, now)
        if value is not None and entries.touch(key, now):
            self.server.store.put(_TABLE, _row(dict_id, key), _LAST_USED.pack(now) + value)
        return value

    def _write(self, dict_id: str, updates: Iterable[api_pb2.DictEntry]) -> None:
        updates = list(updates)
        if len(updates) > MAX_ENTRIES_PER_UPDATE:
            raise RpcError(
                Status.INVALID_ARGUMENT,
                f"A Dict update can have {MAX_ENTRIES_PER_UPDATE} entries at most, not {len(updates)}.",
            )
        if any(len(update.value) > MAX_VALUE_BYTES for update in updates):
            raise RpcError(Status.INVALID_ARGUMENT, f"{TOO_LARGE} (a value exceeds {MAX_VALUE_BYTES} bytes)")
        now = self.server.clock.time()
        with self.server.store.transaction():
            for update in updates:
                self.server.store.put(_TABLE, _row(dict_id, update.key), _LAST_USED.pack(now) + update.value)
        for update in updates:
            self._contents[dict_id].put(update.key, update.value, now)

    def _remove(self, dict_id: str, keys: Iterable[bytes]) -> None:
        keys = list(keys)
        with self.server.store.transaction():
            for key in keys:
                self.server.store.delete(_TABLE, _row(dict_id, key))
        for key in keys:
            self._contents[dict_id].remove(key)

    async def _drop(self, record: Record) -> None:
        self._remove(record.object_id, self._contents[record.object_id].keys())
        del self._contents[record.object_id]


def _row(dict_id: str, key: bytes) -> str:
    return f"{dict_id}/{key.hex()}"


def _metadata(record: Record) -> api_pb2.DictMetadata:
    return api_pb2.DictMetadata(name=record.name, creation_info=record.creation_info())

"""Queues: independent FIFO partitions, with getters that wait their turn."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from modal_proto import api_pb2

from local_modal.ids import QUEUE
from local_modal.objects import Objects, Record
from local_modal.queue_partition import Item, Partition, PartitionFull
from local_modal.rpc import RpcError, caller
from local_modal.services.named import ObjectService

if TYPE_CHECKING:
    from local_modal.server import Server

MAX_PARTITIONS = 100_000
MAX_ITEM_BYTES = 2**20
"""Both from `modal/queue.py`, like the limits in `queue_partition`."""
DEFAULT_TTL = 24 * 3600
MAX_POLL_SECONDS = 55.0
"""The SDK asks for at most 50 s at a time (`modal/queue.py`)."""
PURGE_INTERVAL = 60.0
MAX_KEY_BYTES = 64
"""Of a partition's key (`modal/queue.py`)."""
REPLAYS_KEPT = 4096

_ITEMS, _PARTITIONS = "queue_items", "queue_partitions"


class QueueService(ObjectService):
    """The Queue RPCs.

    An item leaves the queue in the same step in which its answer is made. A getter that is cancelled, because
    its client went away, never gets that far; one whose answer was lost on the way gets it again when the SDK
    repeats the call with the same key.
    """

    purge_interval = PURGE_INTERVAL

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.objects = Objects(server, QUEUE, "Queue", self._drop)
        self._partitions: dict[str, dict[bytes, Partition]] = {}
        self._taken: OrderedDict[str, api_pb2.QueueGetResponse] = OrderedDict()
        self._attempts: dict[str, object] = {}
        """The newest attempt of each call that waits: an older one whose client is gone without our knowing
        must not take anything."""

    async def load(self) -> None:
        """Read all items."""
        self._partitions = {record.object_id: {} for record in self.objects.all()}
        for row, value in self.server.store.load(_PARTITIONS).items():
            queue_id, key = _split(row)
            if queue_id in self._partitions:
                self._partitions[queue_id][key] = Partition(**json.loads(value))
            else:  # died between the removal of the Queue and of its contents
                self.server.store.delete(_PARTITIONS, row)
        for row, value in sorted(self.server.store.load(_ITEMS).items()):
            partition_row, _, number = row.rpartition("/")
            queue_id, key = _split(partition_row)
            if key in self._partitions.get(queue_id, {}):
                self._partitions[queue_id][key].restore(Item(int(number), value))
            else:
                self.server.store.delete(_ITEMS, row)

    def purge(self) -> None:
        """Clear the partitions that nothing was put into for their time to live."""
        now = self.server.clock.time()
        for queue_id, partitions in self._partitions.items():
            for key in [key for key, partition in partitions.items() if partition.expires_at <= now]:
                self._clear(queue_id, key)
                if not partitions[key].in_use:
                    del partitions[key]
                    self.server.store.delete(_PARTITIONS, _row(queue_id, key))

    async def QueueGetOrCreate(
        self, request: api_pb2.QueueGetOrCreateRequest
    ) -> api_pb2.QueueGetOrCreateResponse:
        record, _ = self.objects.get_or_create(
            request.deployment_name, request.environment_name, request.object_creation_type
        )
        self._partitions.setdefault(record.object_id, {})
        return api_pb2.QueueGetOrCreateResponse(queue_id=record.object_id, metadata=_metadata(record))

    async def QueueGetById(self, request: api_pb2.QueueGetByIdRequest) -> api_pb2.QueueGetByIdResponse:
        record = self.objects.get(request.queue_id)
        return api_pb2.QueueGetByIdResponse(queue_id=record.object_id, metadata=_metadata(record))

    async def QueueList(self, request: api_pb2.QueueListRequest) -> api_pb2.QueueListResponse:
        queues = []
        for record in self.objects.page(request.environment_name, request.pagination):
            partitions = [
                partition
                for key in self._keys(record.object_id)
                if (partition := self._find(record.object_id, key))
            ]
            total = sum(len(partition) for partition in partitions)
            queues.append(
                api_pb2.QueueListResponse.QueueInfo(
                    name=record.name,
                    created_at=record.created_at,
                    num_partitions=len(partitions),
                    total_size=min(total, request.total_size_limit or total),
                    queue_id=record.object_id,
                    metadata=_metadata(record),
                )
            )
        environment = self.server.environments.resolve(request.environment_name)
        return api_pb2.QueueListResponse(queues=queues, environment_name=environment)

    async def QueueHeartbeat(self, request: api_pb2.QueueHeartbeatRequest) -> Empty:
        self.objects.heartbeat(request.queue_id)
        return Empty()

    async def QueueDelete(self, request: api_pb2.QueueDeleteRequest) -> Empty:
        await self.objects.delete(request.queue_id)
        return Empty()

    async def QueuePut(self, request: api_pb2.QueuePutRequest) -> Empty:
        _check_key(request.partition_key)
        largest = max((len(value) for value in request.values), default=0)
        if largest > MAX_ITEM_BYTES:
            raise RpcError(
                Status.INVALID_ARGUMENT,
                f"A Queue item can have {MAX_ITEM_BYTES} bytes at most once serialized, not {largest}.",
            )
        partition = self._find_or_make(request.queue_id, request.partition_key)
        try:
            partition.check_room(request.values)
        except PartitionFull as full:
            raise RpcError(Status.RESOURCE_EXHAUSTED, str(full)) from None
        expires_at = self.server.clock.time() + (request.partition_ttl_seconds or DEFAULT_TTL)
        row = _row(request.queue_id, request.partition_key)
        items = partition.numbered(request.values)
        with self.server.store.transaction():
            self.server.store.put(_PARTITIONS, row, partition.described(items, expires_at))
            for item in items:
                self.server.store.put(_ITEMS, _item_row(row, item), item.value)
        partition.append(items, expires_at)
        return Empty()

    async def QueueGet(self, request: api_pb2.QueueGetRequest) -> api_pb2.QueueGetResponse:
        key = caller().idempotency_key or ""
        if key in self._taken:
            return self._taken[key]
        attempt = self._attempts[key] = object()
        try:
            values = self._take(request)
            if not values and request.timeout > 0:
                values = await self._wait_and_take(request, lambda: not key or self._attempts[key] is attempt)
        finally:
            if self._attempts.get(key) is attempt:
                del self._attempts[key]
        response = api_pb2.QueueGetResponse(values=values)
        if key and values:
            self._taken[key] = response
            while len(self._taken) > REPLAYS_KEPT:
                self._taken.popitem(last=False)
        return response

    async def QueueLen(self, request: api_pb2.QueueLenRequest) -> api_pb2.QueueLenResponse:
        self.objects.get(request.queue_id)
        keys = self._keys(request.queue_id) if request.total else [request.partition_key]
        partitions = [self._find(request.queue_id, key) for key in keys]
        return api_pb2.QueueLenResponse(
            len=sum(len(partition) for partition in partitions if partition is not None)
        )

    async def QueueClear(self, request: api_pb2.QueueClearRequest) -> Empty:
        self.objects.get(request.queue_id)
        keys = self._keys(request.queue_id) if request.all_partitions else [request.partition_key]
        for key in keys:
            self._clear(request.queue_id, key)
        return Empty()

    async def QueueNextItems(self, request: api_pb2.QueueNextItemsRequest) -> api_pb2.QueueNextItemsResponse:
        self.objects.get(request.queue_id)
        last = int(request.last_entry_id or 0)
        items = self._after(request, last)
        if not items and request.item_poll_timeout > 0:
            partition = self._find_or_make(request.queue_id, request.partition_key)
            await partition.wait_for_put(min(request.item_poll_timeout, MAX_POLL_SECONDS))
            items = self._after(request, last)
        return api_pb2.QueueNextItemsResponse(
            items=[api_pb2.QueueItem(value=item.value, entry_id=str(item.number)) for item in items]
        )

    async def _wait_and_take(
        self, request: api_pb2.QueueGetRequest, is_newest: Callable[[], bool]
    ) -> list[bytes]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(request.timeout, MAX_POLL_SECONDS)
        while (remaining := deadline - loop.time()) > 0:
            partition = self._find_or_make(request.queue_id, request.partition_key)
            async with partition.turn(remaining) as awake:
                if not is_newest():
                    return []
                if awake:
                    # No await between here and the answer: a cancellation finds the items either in the queue
                    # or answered.
                    values = self._take(request, my_turn=True)
                    if values:
                        return values
        return []

    def _take(self, request: api_pb2.QueueGetRequest, my_turn: bool = False) -> list[bytes]:
        self.objects.get(request.queue_id)
        partition = self._find(request.queue_id, request.partition_key)
        if partition is None or (partition.has_getters and not my_turn):
            return []  # those who wait already come first
        items = partition.first(max(1, request.n_values))
        row = _row(request.queue_id, request.partition_key)
        with self.server.store.transaction():
            for item in items:
                self.server.store.delete(_ITEMS, _item_row(row, item))
        partition.remove(items)
        return [item.value for item in items]

    def _after(self, request: api_pb2.QueueNextItemsRequest, last: int) -> list[Item]:
        partition = self._find(request.queue_id, request.partition_key)
        return partition.after(last) if partition is not None else []

    def _keys(self, queue_id: str) -> list[bytes]:
        return list(self._partitions.get(queue_id, {}))

    def _find(self, queue_id: str, key: bytes) -> Partition | None:
        partition = self._partitions.get(queue_id, {}).get(key)
        if partition is not None and partition.expires_at <= self.server.clock.time():
            self._clear(queue_id, key)
        return partition

    def _find_or_make(self, queue_id: str, key: bytes) -> Partition:
        self.objects.get(queue_id)
        partition = self._find(queue_id, key)
        if partition is None:
            partitions = self._partitions[queue_id]
            if len(partitions) >= MAX_PARTITIONS:
                raise RpcError(
                    Status.RESOURCE_EXHAUSTED, f"A Queue may have at most {MAX_PARTITIONS} partitions."
                )
            partition = partitions[key] = Partition()
        return partition

    def _clear(self, queue_id: str, key: bytes) -> None:
        partition = self._partitions.get(queue_id, {}).get(key)
        if partition is None:
            return
        row = _row(queue_id, key)
        items = partition.after(0)
        with self.server.store.transaction():
            for item in items:
                self.server.store.delete(_ITEMS, _item_row(row, item))
        partition.remove(items)

    async def _drop(self, record: Record) -> None:
        for key, partition in self._partitions.pop(record.object_id, {}).items():
            row = _row(record.object_id, key)
            with self.server.store.transaction():
                for item in partition.after(0):
                    self.server.store.delete(_ITEMS, _item_row(row, item))
                self.server.store.delete(_PARTITIONS, row)
            partition.wake_all()


def _check_key(key: bytes) -> None:
    if len(key) > MAX_KEY_BYTES:
        raise RpcError(
            Status.INVALID_ARGUMENT,
            f"A Queue partition's key can have {MAX_KEY_BYTES} bytes at most, not {len(key)}.",
        )


def _row(queue_id: str, key: bytes) -> str:
    return f"{queue_id}/{key.hex()}"


def _split(row: str) -> tuple[str, bytes]:
    queue_id, _, key = row.partition("/")
    return queue_id, bytes.fromhex(key)


def _item_row(partition_row: str, item: Item) -> str:
    return f"{partition_row}/{item.number:020d}"


def _metadata(record: Record) -> api_pb2.QueueMetadata:
    return api_pb2.QueueMetadata(name=record.name, creation_info=record.creation_info())

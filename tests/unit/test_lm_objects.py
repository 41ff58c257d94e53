"""Lifetimes of Dicts, Queues, Secrets and Volumes by the server's clock, without a client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal.model import App
from local_modal.objects import EPHEMERAL_LIFETIME, HEARTBEAT_SECONDS
from local_modal.rpc import RpcError
from local_modal.server import Options, Server
from local_modal.services.dicts import ENTRY_LIFETIME
from local_modal.services.queues import DEFAULT_TTL

DATA_SERVICES = ("environments", "secrets", "dicts", "queues", "volumes")
EPHEMERAL = api.OBJECT_CREATION_TYPE_EPHEMERAL
IF_MISSING = api.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
OF_APP = api.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP
OVERWRITE = api.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS


class SetClock:
    """Time passes when the test says so; whoever sleeps, sleeps for ever."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


Scenario = Callable[[Server, SetClock], Awaitable[None]]


def serve(state_dir: Path, scenario: Scenario, clock: SetClock | None = None) -> None:
    """Run a scenario on a server that has its data services only and doesn't listen."""
    clock = clock or SetClock()

    async def run() -> None:
        server = Server(Options(state_dir), clock)
        for name in DATA_SERVICES:
            await server.services[name].start()
        try:
            await asyncio.wait_for(scenario(server, clock), timeout=30)
        finally:
            for name in DATA_SERVICES:
                await server.services[name].stop()
            server.store.close()

    asyncio.run(run())


def is_gone(error: pytest.ExceptionInfo[RpcError]) -> bool:
    return error.value.status is Status.NOT_FOUND


async def new_dict(server: Server, **entries: bytes) -> str:
    response = await server.dicts.DictGetOrCreate(
        api.DictGetOrCreateRequest(
            deployment_name="d",
            object_creation_type=IF_MISSING,
            data=[api.DictEntry(key=key.encode(), value=value) for key, value in entries.items()],
        )
    )
    return response.dict_id


async def value(server: Server, dict_id: str, key: bytes) -> bytes | None:
    response = await server.dicts.DictGet(api.DictGetRequest(dict_id=dict_id, key=key))
    return response.value if response.found else None


async def put(server: Server, dict_id: str, key: bytes, new: bytes, if_not_exists: bool = False) -> bool:
    updates = [api.DictEntry(key=key, value=new)]
    request = api.DictUpdateRequest(dict_id=dict_id, updates=updates, if_not_exists=if_not_exists)
    return (await server.dicts.DictUpdate(request)).created


def test_ephemeral_objects_live_as_long_as_their_heartbeats(tmp_path: Path) -> None:
    async def scenario(server: Server, clock: SetClock) -> None:
        kept, lost = [
            (
                await server.dicts.DictGetOrCreate(api.DictGetOrCreateRequest(object_creation_type=EPHEMERAL))
            ).dict_id
            for _ in range(2)
        ]
        volume = await server.volumes.VolumeGetOrCreate(
            api.VolumeGetOrCreateRequest(object_creation_type=EPHEMERAL)
        )
        named = await new_dict(server)
        for _ in range(4):
            clock.now += HEARTBEAT_SECONDS
            await server.dicts.DictHeartbeat(api.DictHeartbeatRequest(dict_id=kept))
            await server.dicts.objects.expire()
            await server.volumes.objects.expire()
        await server.dicts.DictLen(api.DictLenRequest(dict_id=kept))
        await server.dicts.DictLen(api.DictLenRequest(dict_id=named))
        with pytest.raises(RpcError) as error:
            await server.dicts.DictHeartbeat(api.DictHeartbeatRequest(dict_id=lost))
        assert is_gone(error)
        assert volume.volume_id not in server.volumes.files.volume_ids()

    serve(tmp_path, scenario)


def test_a_restart_does_not_prolong_ephemeral_objects(tmp_path: Path) -> None:
    clock = SetClock()

    async def create(server: Server, clock: SetClock) -> None:
        await server.dicts.DictGetOrCreate(api.DictGetOrCreateRequest(object_creation_type=EPHEMERAL))

    async def look(server: Server, clock: SetClock) -> None:
        assert len(server.dicts.objects.all()) == 1
        clock.now += EPHEMERAL_LIFETIME + 1
        await server.dicts.objects.expire()
        assert server.dicts.objects.all() == []

    serve(tmp_path, create, clock)
    serve(tmp_path, look, clock)


def test_anonymous_objects_go_with_their_app(tmp_path: Path) -> None:
    async def secret(server: Server, app_id: str, **values: str) -> str:
        request = api.SecretGetOrCreateRequest(object_creation_type=OF_APP, app_id=app_id, env_dict=values)
        return (await server.secrets.SecretGetOrCreate(request)).secret_id

    async def scenario(server: Server, clock: SetClock) -> None:
        first = await secret(server, "ap-1", A="1")
        assert await secret(server, "ap-1", A="1") == first, "a second deployment finds it again"
        others = {await secret(server, "ap-1", A="2"), await secret(server, "ap-2", A="1")}
        assert first not in others and len(others) == 2
        await server.secrets.release_app("ap-1")
        with pytest.raises(RpcError) as error:
            server.secrets.environ([first])
        assert is_gone(error)
        assert [record.app_id for record in server.secrets.objects.all()] == ["ap-2"]

    serve(tmp_path, scenario)


def test_anonymous_objects_of_an_app_that_ended_with_its_server_go_at_the_next_start(tmp_path: Path) -> None:
    async def create(server: Server, clock: SetClock) -> None:
        deployed = App("ap-1", "d", "main", state=api.APP_STATE_DEPLOYED, name="d")
        server.store.put("apps", deployed.app_id, deployed.to_bytes())
        for app_id in ("ap-1", "ap-2"):  # the second one is ephemeral, and is not written down
            await server.secrets.SecretGetOrCreate(
                api.SecretGetOrCreateRequest(
                    object_creation_type=OF_APP, app_id=app_id, env_dict={"A": app_id}
                )
            )
        await new_dict(server)

    async def look(server: Server, clock: SetClock) -> None:
        await server.apps.start()
        await server.apps.stop()
        assert [record.app_id for record in server.secrets.objects.all()] == ["ap-1"]
        assert len(list((tmp_path / "secrets").iterdir())) == 1
        assert len(server.dicts.objects.all()) == 1

    serve(tmp_path, create)
    serve(tmp_path, look)


def test_an_overwritten_secret_keeps_its_id(tmp_path: Path) -> None:
    async def scenario(server: Server, clock: SetClock) -> None:
        ids = []
        for values in ({"A": "1", "B": "1"}, {"A": "2"}):
            request = api.SecretGetOrCreateRequest(
                deployment_name="s", object_creation_type=OVERWRITE, env_dict=values
            )
            ids.append((await server.secrets.SecretGetOrCreate(request)).secret_id)
        assert ids[0] == ids[1]
        assert server.secrets.environ(ids[:1]) == {"A": "2"}

    serve(tmp_path, scenario)


def test_later_secrets_win(tmp_path: Path) -> None:
    async def scenario(server: Server, clock: SetClock) -> None:
        ids = []
        for name, values in (("one", {"A": "1", "B": "1"}), ("two", {"A": "2", "C": "2"})):
            request = api.SecretGetOrCreateRequest(
                deployment_name=name, object_creation_type=IF_MISSING, env_dict=values
            )
            ids.append((await server.secrets.SecretGetOrCreate(request)).secret_id)
        assert server.secrets.environ(ids) == {"A": "2", "B": "1", "C": "2"}
        assert server.secrets.environ(ids[::-1]) == {"A": "1", "B": "1", "C": "2"}

    serve(tmp_path, scenario)


def test_dict_entries_expire_a_week_after_their_last_use(tmp_path: Path) -> None:
    clock = SetClock()

    async def fill_and_read(server: Server, clock: SetClock) -> None:
        dict_id = await new_dict(server, read=b"1", unread=b"2")
        clock.now += ENTRY_LIFETIME - 10
        assert await value(server, dict_id, b"read") == b"1"

    async def look(server: Server, clock: SetClock) -> None:
        dict_id = await new_dict(server)
        clock.now += 20
        assert await value(server, dict_id, b"read") == b"1"
        assert await value(server, dict_id, b"unread") is None
        assert (await server.dicts.DictLen(api.DictLenRequest(dict_id=dict_id))).len == 1
        assert await put(server, dict_id, b"unread", b"again", if_not_exists=True)
        clock.now += ENTRY_LIFETIME + 1
        server.dicts.purge()
        assert server.store.load("dict_entries") == {}

    serve(tmp_path, fill_and_read, clock)
    serve(tmp_path, look, clock)  # a read is remembered over a restart


def test_queue_partitions_expire_after_their_time_to_live(tmp_path: Path) -> None:
    async def scenario(server: Server, clock: SetClock) -> None:
        created = await server.queues.QueueGetOrCreate(
            api.QueueGetOrCreateRequest(deployment_name="q", object_creation_type=IF_MISSING)
        )

        async def put_one(key: bytes, ttl: int) -> None:
            request = api.QueuePutRequest(
                queue_id=created.queue_id, values=[b"x"], partition_key=key, partition_ttl_seconds=ttl
            )
            await server.queues.QueuePut(request)

        async def length() -> int:
            return (
                await server.queues.QueueLen(api.QueueLenRequest(queue_id=created.queue_id, total=True))
            ).len

        await put_one(b"", 0)
        await put_one(b"short", 60)
        clock.now += 59
        await put_one(b"short", 60)  # counts from the last put
        clock.now += 59
        assert await length() == 3
        clock.now += 1
        assert await length() == 1
        clock.now += DEFAULT_TTL
        server.queues.purge()
        assert await length() == 0
        assert server.store.load("queue_items") == {}
        assert server.store.load("queue_partitions") == {}

    serve(tmp_path, scenario)


def test_contents_of_an_object_that_is_gone_are_cleared_at_the_start(tmp_path: Path) -> None:
    async def leave_pieces(server: Server, clock: SetClock) -> None:
        dict_id = await new_dict(server, k=b"v")
        await server.secrets.SecretGetOrCreate(
            api.SecretGetOrCreateRequest(
                deployment_name="s", object_creation_type=IF_MISSING, env_dict={"A": "1"}
            )
        )
        server.store.delete("objects_di", dict_id)  # as if killed in the middle of a deletion
        for record in server.secrets.objects.all():
            server.store.delete("objects_st", record.object_id)

    async def look(server: Server, clock: SetClock) -> None:
        assert server.store.load("dict_entries") == {}
        assert list((server.state_dir / "secrets").iterdir()) == []

    serve(tmp_path, leave_pieces)
    serve(tmp_path, look)


@pytest.mark.parametrize("name", ["", "unknown"])
def test_a_request_that_makes_no_sense_is_refused(tmp_path: Path, name: str) -> None:
    async def scenario(server: Server, clock: SetClock) -> None:
        with pytest.raises(RpcError) as error:
            await server.dicts.DictGetOrCreate(api.DictGetOrCreateRequest(deployment_name=name))
        assert error.value.status is (Status.NOT_FOUND if name else Status.INVALID_ARGUMENT)
        with pytest.raises(RpcError, match="can't be overwritten"):
            await server.dicts.DictGetOrCreate(
                api.DictGetOrCreateRequest(deployment_name="d", object_creation_type=OVERWRITE)
            )

    serve(tmp_path, scenario)


@pytest.mark.parametrize("name", ["with space", "a/b", "x" * 65, "ap-0123456789abcdefghijkl"])
def test_names_are_checked(tmp_path: Path, name: str) -> None:
    async def scenario(server: Server, clock: SetClock) -> None:
        request = api.DictGetOrCreateRequest(deployment_name=name, object_creation_type=IF_MISSING)
        with pytest.raises(RpcError, match="Invalid Dict name") as error:
            await server.dicts.DictGetOrCreate(request)
        assert error.value.status is Status.INVALID_ARGUMENT
        volume = await server.volumes.VolumeGetOrCreate(
            api.VolumeGetOrCreateRequest(deployment_name="v", object_creation_type=IF_MISSING)
        )
        with pytest.raises(RpcError, match="Invalid Volume name"):
            server.volumes.objects.rename(volume.volume_id, name)

    serve(tmp_path, scenario)


@pytest.mark.parametrize("name", ["", "-first", "with.period", "en-123", "EN-x", "x" * 65])
def test_names_of_environments_are_checked(tmp_path: Path, name: str) -> None:
    async def scenario(server: Server, clock: SetClock) -> None:
        with pytest.raises(RpcError, match="Invalid environment name") as error:
            await server.environments.EnvironmentCreate(api.EnvironmentCreateRequest(name=name))
        assert error.value.status is Status.INVALID_ARGUMENT

    serve(tmp_path, scenario)


def test_an_environment_is_found_by_its_id_and_there_is_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_modal.services.environments.MAX_ENVIRONMENTS", 2)

    async def scenario(server: Server, clock: SetClock) -> None:
        await server.environments.EnvironmentCreate(api.EnvironmentCreateRequest(name="second"))
        with pytest.raises(RpcError, match="2 environments at most") as error:
            await server.environments.EnvironmentCreate(api.EnvironmentCreateRequest(name="third"))
        assert error.value.status is Status.RESOURCE_EXHAUSTED
        found = await server.environments.EnvironmentGetOrCreate(
            api.EnvironmentGetOrCreateRequest(deployment_name="second")
        )
        assert server.environments.resolve(found.environment_id) == "second"

    serve(tmp_path, scenario)


def test_a_partition_key_has_a_limit(tmp_path: Path) -> None:
    async def scenario(server: Server, clock: SetClock) -> None:
        created = await server.queues.QueueGetOrCreate(
            api.QueueGetOrCreateRequest(deployment_name="q", object_creation_type=IF_MISSING)
        )
        request = api.QueuePutRequest(queue_id=created.queue_id, values=[b"x"], partition_key=b"k" * 65)
        with pytest.raises(RpcError, match="64 bytes") as error:
            await server.queues.QueuePut(request)
        assert error.value.status is Status.INVALID_ARGUMENT

    serve(tmp_path, scenario)

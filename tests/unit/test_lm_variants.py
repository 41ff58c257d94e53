"""How long variants stay: those of clients as long as their function, those of web requests while in use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from modal_proto import api_pb2 as api

from local_modal.calls import Call
from local_modal.clock import SystemClock
from local_modal.model import App, FunctionRecord, Task
from local_modal.rpc import RpcError
from local_modal.scheduler import PoolKey, PoolSettings
from local_modal.server import Options, Server
from local_modal.variant_records import VARIANTS, WEB_KEPT, WEB_USES

FUNCTION = "fu-1"
HOUR = 3600.0


@asynccontextmanager
async def running(state_dir: Path, clock: SystemClock) -> AsyncIterator[Server]:
    """A server with one deployed class, without listeners and containers."""
    server = Server(Options(state_dir), clock)
    app = App("ap-1", "shop", "main", api.APP_STATE_DEPLOYED, name="shop", function_ids={"Shop.*": FUNCTION})
    handle, definition = api.FunctionHandleMetadata(), api.Function(function_name="Shop.*")
    names = ("blobs", "mounts", "images", "functions", "apps", "web_functions")
    started = [server.services[name] for name in names]
    try:
        for service in started:
            await service.start()
        server.apps.apps[app.app_id] = app
        server.functions.records[FUNCTION] = FunctionRecord(FUNCTION, "ap-1", "Shop.*", handle, definition)
        yield server
    finally:
        for service in reversed(started):
            await service.stop()
        server.store.close()


async def by_client(server: Server, parameters: str) -> str:
    """As the SDK makes a variant."""
    request = api.FunctionBindParamsRequest(function_id=FUNCTION, serialized_params=parameters.encode())
    return (await server.functions.FunctionBindParams(request)).bound_function_id


def by_request(server: Server, parameters: str) -> str:
    """As a web request does."""
    return server.functions.bind_for_web(FUNCTION, parameters.encode())


def kept(server: Server) -> set[str]:
    """The variants that there are, by their parameters; in memory and in the store they are the same."""
    variants = server.functions.variants_of(FUNCTION)
    assert variants.keys() == server.store.load(VARIANTS).keys()
    assert variants.keys() >= server.store.load(WEB_USES).keys()
    return {bound.serialized_params.decode() for bound in variants.values()}


def test_variants_of_web_requests_go_when_they_are_unused_for_a_day(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = SystemClock()
        async with running(tmp_path, clock) as server:
            for name in ("unused", "used", "asked for by a client, too"):
                by_request(server, name)
            await by_client(server, "a client's")
            await by_client(server, "a client's, then of the web")
            by_request(server, "a client's, then of the web")
            await by_client(server, "asked for by a client, too")
            everything = kept(server)
            assert len(everything) == 5

            clock.advance(WEB_KEPT - HOUR)
            server.functions.sweep()
            assert kept(server) == everything
            variant = by_request(server, "used")
            server.stats.container_started(variant)
            clock.advance(2 * HOUR)
            await server.sweeping.sweep(time.time())
            assert kept(server) == everything - {"unused"}
            clock.advance(WEB_KEPT)
            server.functions.sweep()
            assert kept(server) == {"a client's", "a client's, then of the web", "asked for by a client, too"}
            assert not server.stats.functions and not server.store.load(WEB_USES)
            with pytest.raises(RpcError):
                server.functions.resolve(variant)
            assert by_request(server, "used") == variant, "it is made again"
            clock.advance(365 * WEB_KEPT)
            server.functions.sweep()
            assert len(kept(server)) == 3

            server.functions.forget(server.apps.apps["ap-1"])
            assert not server.store.load(VARIANTS) and not server.functions.variants_of(FUNCTION)

    asyncio.run(scenario())


def test_a_variant_stays_while_anything_refers_to_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = SystemClock()
        async with running(tmp_path, clock) as server:
            engine = server.engine
            ids = {name: by_request(server, name) for name in ("call", "pool", "task", "autoscaler", "none")}
            engine.ledger.calls["fc-1"] = Call("fc-1", ids["call"], "ap-1", 0, 0, clock.time())
            key = PoolKey(ids["pool"], 1)
            engine.scheduler.ensure_pool(key, PoolSettings())
            engine.tasks["ta-1"] = Task("ta-1", "ap-1", ids["task"], "Shop.*", "main", clock.time())
            record = server.functions.records[FUNCTION]
            record.autoscaler[ids["autoscaler"]] = api.AutoscalerSettings(max_containers=3)
            clock.advance(2 * WEB_KEPT)
            server.functions.sweep()
            assert kept(server) == ids.keys() - {"none"}
            engine.ledger.calls.clear()
            engine.scheduler.pools.clear()
            engine.tasks.clear()
            record.autoscaler.clear()
            server.functions.sweep()
            assert kept(server) == set()

    asyncio.run(scenario())


def test_a_restarted_server_knows_whose_a_variant_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = SystemClock()
        async with running(tmp_path, clock) as server:
            await by_client(server, "a client's")
            by_request(server, "web")
            by_request(server, "web, then a client's")
            await by_client(server, "web, then a client's")
        clock.advance(WEB_KEPT / 2)
        async with running(tmp_path, clock) as server:
            server.functions.sweep()
            assert kept(server) == {"a client's", "web", "web, then a client's"}
            clock.advance(WEB_KEPT / 2)
            server.functions.sweep()
            assert kept(server) == {"a client's", "web, then a client's"}

    asyncio.run(scenario())

"""Apps whose clients have gone without a word."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from modal_proto import api_pb2 as api

from local_modal.clock import SystemClock
from local_modal.server import Options, Server

pytestmark = pytest.mark.one_sdk

STATES = (api.APP_STATE_EPHEMERAL, api.APP_STATE_INITIALIZING, api.APP_STATE_DETACHED)


def test_an_app_that_lives_for_its_client_ends_a_minute_after_the_last_heartbeat(tmp_path: Path) -> None:
    """Within the server's process: whoever advances the clock from outside is taken to be alive."""

    async def scenario() -> None:
        clock = SystemClock()
        server = Server(Options(tmp_path), clock)
        await server.start()
        try:
            apps = []
            for state in (api.APP_STATE_EPHEMERAL, *STATES):
                created = await server.apps.AppCreate(api.AppCreateRequest(app_state=state))
                apps.append(server.apps.get(created.app_id))
            alive, *silent = apps
            clock.advance(50)
            await server.apps.AppHeartbeat(api.AppHeartbeatRequest(app_id=alive.app_id))
            assert all(app.state != api.APP_STATE_STOPPED for app in apps)
            clock.advance(30)
            deadline = time.monotonic() + 10
            while any(app.state != api.APP_STATE_STOPPED for app in silent) and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            assert [app.state for app in silent] == [api.APP_STATE_STOPPED] * len(STATES)
            assert alive.state == api.APP_STATE_EPHEMERAL
        finally:
            await server.stop()

    asyncio.run(scenario())

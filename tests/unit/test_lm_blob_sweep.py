"""Blobs that nothing refers to are removed, the others stay."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from modal_proto import api_pb2 as api

from local_modal.model import Call, Input
from local_modal.server import Options, Server
from local_modal.services.blobs import ORPHANS_KEPT


def test_orphans_are_swept_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(Options(tmp_path))
        await server.blobs.start()
        try:
            names = ("bl-argument", "bl-result", "bl-chunk", "bl-orphan")
            for name in (*names, "bl-upload.1234"):
                (tmp_path / "blobs" / name).write_bytes(b"data")
            call = Call("fc-1", "fu-1", "ap-1", 0, 0, time.time())
            call.inputs = [Input(f"in-{index}", call, index, api.FunctionInput()) for index in range(2)]
            call.inputs[0].payload.args_blob_id = "bl-argument"
            result = api.GenericResult(data_blob_id="bl-result")
            call.inputs[1].output = api.FunctionGetOutputsItem(result=result)
            call.data_out.append([api.DataChunk(index=1, data_blob_id="bl-chunk")])
            server.engine.ledger.calls[call.call_id] = call

            await server.blobs.sweep(time.time())
            assert len(list((tmp_path / "blobs").iterdir())) == 5, "all are too young"
            await server.blobs.sweep(time.time() + ORPHANS_KEPT + 1)
            assert {path.name for path in (tmp_path / "blobs").iterdir()} == set(names) - {"bl-orphan"}
            server.engine.ledger.calls.clear()
            await server.blobs.sweep(time.time() + ORPHANS_KEPT + 1)
            assert not list((tmp_path / "blobs").iterdir())
        finally:
            await server.blobs.stop()
            server.store.close()

    asyncio.run(scenario())

"""What nothing refers to any more is removed from the state directory, the rest stays."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from pathlib import Path

import pytest
from modal_proto import api_pb2 as api

from local_modal.calls import Call, Input
from local_modal.model import FunctionRecord
from local_modal.server import Options, Server
from local_modal.services import mounts as mounts_module
from local_modal.services.blobs import ORPHANS_KEPT
from local_modal.services.mounts import UNUSED_KEPT


def test_blobs_without_a_call_are_swept_up(tmp_path: Path) -> None:
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


async def mount(server: Server, name: str) -> str:
    data = f"content of {name}".encode()
    digest = hashlib.sha256(data).hexdigest()
    await server.mounts.MountPutFile(api.MountPutFileRequest(sha256_hex=digest, data=data))
    files = [api.MountFile(filename=f"/root/{name}.py", sha256_hex=digest)]
    return (await server.mounts.MountGetOrCreate(api.MountGetOrCreateRequest(files=files))).mount_id


async def image(server: Server, name: str) -> str:
    """Two layers, the upper one with a file of its own."""
    base = await server.images.ImageGetOrCreate(
        api.ImageGetOrCreateRequest(image=api.Image(dockerfile_commands=[f"FROM {name}"]))
    )
    upper = api.Image(
        base_images=[api.BaseImage(docker_tag="base", image_id=base.image_id)],
        dockerfile_commands=["FROM base", "COPY /file /file"],
        context_files=[api.ImageContextFile(filename="/file", data=f"file of {name}".encode())],
    )
    return (await server.images.ImageGetOrCreate(api.ImageGetOrCreateRequest(image=upper))).image_id


def test_what_no_function_has_any_more_is_swept_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(Options(tmp_path))
        started = [server.services[name] for name in ("blobs", "mounts", "images", "functions")]
        for service in started:
            await service.start()
        try:
            mounts = {name: await mount(server, name) for name in ("used", "unused")}
            images = {name: await image(server, name) for name in ("used", "unused")}
            roots = {name: await server.mounts.root([mounts[name]], sys.executable) for name in mounts}
            definition = api.Function(image_id=images["used"], mount_ids=[mounts["used"]])
            server.functions.records["fu-1"] = FunctionRecord(
                "fu-1", "ap-1", "f", api.FunctionHandleMetadata(), definition
            )
            files = tmp_path / "mounts" / "files"
            await server.sweeping.sweep(time.time())
            assert len(list(files.iterdir())) == 4 and roots["unused"].exists(), "all are too young"
            later = time.time() + UNUSED_KEPT + 1
            await server.sweeping.sweep(later)
            texts = {path.read_text() for path in files.iterdir()}
            assert texts == {"content of used", "file of used"}
            assert [server.images.view(images[name]).base for name in images] == ["used", ""]
            assert not roots["unused"].exists()
            again = await server.mounts.root([mounts["used"]], sys.executable)
            assert (again / "root" / "used.py").read_text() == "content of used"
        finally:
            for service in reversed(started):
                await service.stop()
            server.store.close()

    asyncio.run(scenario())


def test_a_directory_stays_while_a_container_from_before_lives(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(Options(tmp_path))
        await server.mounts.start()
        try:
            root = await server.mounts.root([await mount(server, "used")], sys.executable)
            used_at = root.stat().st_mtime
            later = time.time() + UNUSED_KEPT + 1
            await server.mounts.sweep([], later, oldest_container=used_at - 1)
            assert root.exists()
            await server.mounts.sweep([], later, oldest_container=used_at + 1)
            assert not root.exists()
        finally:
            server.store.close()

    asyncio.run(scenario())


def test_what_is_asked_for_while_it_is_being_swept_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = mounts_module._older

    def look_then_ask(directory: Path, than: float) -> list[Path]:
        found = look(directory, than)
        for path in found:
            os.utime(path, (than + 1, than + 1))  # as a deployment or the start of a container does
        return found

    async def scenario() -> None:
        server = Server(Options(tmp_path))
        await server.mounts.start()
        try:
            root = await server.mounts.root([await mount(server, "asked")], sys.executable)
            monkeypatch.setattr(mounts_module, "_older", look_then_ask)
            later = time.time() + UNUSED_KEPT + 1
            await server.mounts.sweep([], later, oldest_container=later)
            assert root.exists() and len(list((tmp_path / "mounts" / "files").iterdir())) == 1
        finally:
            server.store.close()

    asyncio.run(scenario())

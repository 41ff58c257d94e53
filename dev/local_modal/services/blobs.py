"""Blobs: arguments and results too large for a message, uploaded and fetched over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from pathlib import Path

from aiohttp import web
from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal import ids
from local_modal.rpc import RpcError, Service

log = logging.getLogger(__name__)

ORPHANS_KEPT = 24 * 3600.0
"""Seconds that a blob may be there before a call, a result or a stream refers to it: the inputs of a large
`spawn_map` are uploaded long before a full queue takes them.
"""


class BlobService(Service):
    """BlobCreate and BlobGet; one file per blob below the state directory.

    Who forgets the last reference to a blob removes it. What is left over (an upload that nothing came of,
    the calls of an app that ended with the server) is swept up.
    """

    async def start(self) -> None:
        self._dir = self.server.state_dir / "blobs"
        self._dir.mkdir(exist_ok=True)
        self.server.http.add_route("PUT", "/blob/{blob_id}", self._put)
        self.server.http.add_route("GET", "/blob/{blob_id}", self._get)

    async def sweep(self, now: float) -> None:
        """Remove the files that nothing refers to, unless they are so young that something may yet.

        `now` is the machine's own time, as the files' are.
        """
        referred = self._referred()

        def remove() -> int:
            removed = 0
            for path in self._dir.iterdir():
                with contextlib.suppress(FileNotFoundError):  # removed by its owner meanwhile
                    if path.name not in referred and path.stat().st_mtime < now - ORPHANS_KEPT:
                        path.unlink()
                        removed += 1
            return removed

        if removed := await asyncio.to_thread(remove):
            log.info("Removed %d blobs that nothing refers to", removed)

    def _referred(self) -> set[str]:
        """The blobs that calls have as arguments, results or chunks of their streams."""
        calls = self.server.engine.ledger.calls.values()
        return {blob_id for call in calls for blob_id in call.blob_ids()}

    def path(self, blob_id: str) -> Path:
        """The file of an uploaded blob.

        Raises:
            RpcError: NOT_FOUND.
        """
        path = self._dir / Path(blob_id).name
        if not path.is_file():
            raise RpcError(Status.NOT_FOUND, f"Blob {blob_id} not found.")
        return path

    async def add(self, data: bytes) -> str:
        """Keep `data` as a blob, as if a client had uploaded it; returns its id."""
        blob_id = ids.new_id(ids.BLOB)
        await asyncio.to_thread((self._dir / blob_id).write_bytes, data)
        return blob_id

    async def remove(self, blob_id: str) -> None:
        """Drop a blob that nobody will ask for again."""
        await asyncio.to_thread((self._dir / Path(blob_id).name).unlink, missing_ok=True)

    def discard(self, blob_id: str) -> None:
        """Remove a blob that nobody can ask for any more; nothing happens if it isn't there."""
        (self._dir / Path(blob_id).name).unlink(missing_ok=True)

    async def BlobCreate(self, request: api.BlobCreateRequest) -> api.BlobCreateResponse:
        blob_id = ids.new_id(ids.BLOB)
        return api.BlobCreateResponse(
            blob_ids=[blob_id],
            upload_urls=api.UploadUrlList(items=[f"{self.server.http.url}/blob/{blob_id}"]),
        )

    async def BlobGet(self, request: api.BlobGetRequest) -> api.BlobGetResponse:
        self.path(request.blob_id)
        return api.BlobGetResponse(download_url=f"{self.server.http.url}/blob/{request.blob_id}")

    async def _put(self, request: web.Request) -> web.Response:
        path = self._dir / Path(request.match_info["blob_id"]).name
        partial = path.with_suffix(f".{os.urandom(4).hex()}")
        digest = hashlib.md5(usedforsecurity=False)
        with partial.open("wb") as file:
            # Not iter_chunks(): it never ends for an empty body.
            async for chunk in request.content.iter_any():
                digest.update(chunk)
                await asyncio.to_thread(file.write, chunk)
        partial.rename(path)
        # The SDK compares the ETag with its own digest.
        return web.Response(headers={"ETag": digest.hexdigest()})

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path = self._dir / Path(request.match_info["blob_id"]).name
        if not path.is_file():
            raise web.HTTPNotFound(text=f"no blob {path.name}")
        return web.FileResponse(path)

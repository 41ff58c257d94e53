"""How the contents of volumes' files come in and go out: over HTTP, in blocks of 8 MiB, except that those of
version 1 come in as the files of mounts do."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from aiohttp import web
from grpclib.const import Status
from modal_proto import api_pb2

from local_modal.rpc import RpcError
from local_modal.volumes.blobs import BLOCK_SIZE, BlobStore, MissingBlob
from local_modal.volumes.manifest import Entry, file

if TYPE_CHECKING:
    from local_modal.server import Server

DEFAULT_FILE_MODE = 0o644

PutFiles2 = api_pb2.VolumePutFiles2Request


class VolumeTransfer:
    """Uploads and downloads of all volumes."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.blobs: BlobStore
        """Set when the service starts."""
        server.http.add_route("PUT", "/volumes/blocks/{sha256}", self._receive_block)
        server.http.add_route("GET", "/volumes/contents/{sha256}", self._send_content)

    def urls(self, entry: Entry, start: int, end: int) -> list[str]:
        """Where the bytes of a file from `start` to `end` can be downloaded, one URL per block."""
        urls = []
        position = start
        while position < end:
            block_end = min(end, (position // BLOCK_SIZE + 1) * BLOCK_SIZE)
            urls.append(
                f"{self.server.http.url}/volumes/contents/{entry.sha256}?start={position}&end={block_end}"
            )
            position = block_end
        return urls

    def uploaded_files(self, files: Iterable[api_pb2.MountFile]) -> dict[str, Entry]:
        """The entries of files whose contents have been uploaded as those of mounts are, as version 1 does.

        Raises:
            RpcError: FAILED_PRECONDITION, a content hasn't been.
        """
        now = time.time_ns()
        entries = {}
        for uploaded in files:
            sha256 = uploaded.sha256_hex
            if not self.blobs.has(sha256):
                # Volumes of version 1 are uploaded through the same RPC as the files of mounts.
                source = self.server.mounts.path(sha256)
                if not source.exists():
                    raise RpcError(
                        Status.FAILED_PRECONDITION,
                        f"The content of '{uploaded.filename}' has not been uploaded.",
                    )
                self.blobs.put_file(source)
            entries[uploaded.filename] = file(
                sha256, self.blobs.size(sha256), uploaded.mode or DEFAULT_FILE_MODE, now
            )
        return entries

    def missing_blocks(
        self, files: Sequence[PutFiles2.File]
    ) -> list[api_pb2.VolumePutFiles2Response.MissingBlock]:
        """The blocks that have to be uploaded first, each once."""
        missing = []
        asked: set[str] = set()
        for file_index, uploaded in enumerate(files):
            for block_index, block in enumerate(uploaded.blocks):
                sha256 = block.contents_sha256.hex()
                if sha256 not in asked and not self.blobs.has(sha256):
                    asked.add(sha256)
                    missing.append(
                        api_pb2.VolumePutFiles2Response.MissingBlock(
                            file_index=file_index,
                            block_index=block_index,
                            put_url=f"{self.server.http.url}/volumes/blocks/{sha256}",
                        )
                    )
        return missing

    def assembled_files(self, files: Iterable[PutFiles2.File]) -> dict[str, Entry]:
        """The entries of files whose blocks are all here.

        Raises:
            RpcError: INVALID_ARGUMENT, they aren't, or don't make a file of its size.
        """
        now = time.time_ns()
        entries = {}
        for uploaded in files:
            blocks = [block.contents_sha256.hex() for block in uploaded.blocks]
            try:
                sha256 = self.blobs.assemble(blocks, uploaded.size) if blocks else self.blobs.put_bytes(b"")
            except (MissingBlob, ValueError) as error:
                raise RpcError(
                    Status.INVALID_ARGUMENT, f"'{uploaded.path}' can't be put together: {error}"
                ) from None
            mode = uploaded.mode if uploaded.HasField("mode") else DEFAULT_FILE_MODE
            entries[uploaded.path] = file(sha256, uploaded.size, mode, now)
        return entries

    async def _receive_block(self, request: web.Request) -> web.Response:
        expected = request.match_info["sha256"]
        writer = self.blobs.writer()
        try:
            async for chunk in request.content.iter_any():
                writer.write(chunk)
                if writer.size > BLOCK_SIZE:
                    raise web.HTTPRequestEntityTooLarge(max_size=BLOCK_SIZE, actual_size=writer.size)
            if writer.sha256 != expected:
                raise web.HTTPBadRequest(text=f"The block's sha256 is {writer.sha256}, not {expected}")
        except BaseException:
            writer.discard()
            raise
        return web.Response(text=writer.finish())

    async def _send_content(self, request: web.Request) -> web.Response:
        try:
            start, end = (abs(int(request.query[name])) for name in ("start", "end"))
            data = await asyncio.to_thread(
                self.blobs.read, request.match_info["sha256"], start, max(0, end - start)
            )
        except (KeyError, MissingBlob, ValueError):
            raise web.HTTPNotFound(text=f"No content {request.path_qs}") from None
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        return web.Response(body=data, headers={"Repr-Digest": f"sha-256=:{digest}:"})

"""Mounts: the user's source files, kept by digest and laid out as a container sees them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp
from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal import ids
from local_modal.rpc import RpcError, Service, build

log = logging.getLogger(__name__)

TABLE = "mounts"
UNUSED_KEPT = 24 * 3600.0
"""Seconds that a mount, a file or a directory is kept which nothing uses: a deployment is still going on, or
the next one has it again.
"""


class MountService(Service):
    """Mount* RPCs, and `root` for the workers."""

    async def start(self) -> None:
        self._files = self.server.state_dir / "mounts" / "files"
        self._roots = self.server.state_dir / "mounts" / "roots"
        self._files.mkdir(parents=True, exist_ok=True)
        self._roots.mkdir(parents=True, exist_ok=True)
        self._mounts = {
            key: api.MountGetOrCreateRequest.FromString(data)
            for key, data in self.server.store.load(TABLE).items()
        }
        self._used_at: dict[str, float] = dict.fromkeys(self._mounts, time.time())
        self._building: dict[str, asyncio.Task[Path]] = {}

    async def MountBatchedCheckExistence(
        self, request: api.MountBatchedCheckExistenceRequest
    ) -> api.MountBatchedCheckExistenceResponse:
        missing = [digest for digest in request.sha256_hex_hashes if not self._touch(self.path(digest))]
        return build(
            api.MountBatchedCheckExistenceResponse,
            missing_sha256_hex_hashes=missing,
            checked_at=self._now(),
        )

    async def MountPutFile(self, request: api.MountPutFileRequest) -> api.MountPutFileResponse:
        path = self.path(request.sha256_hex)
        kind = request.WhichOneof("data_oneof")
        if kind is not None and not path.exists():
            data = (
                request.data
                if kind == "data"
                else await asyncio.to_thread(self.server.blobs.path(request.data_blob_id).read_bytes)
            )
            if hashlib.sha256(data).hexdigest() != request.sha256_hex:
                raise RpcError(Status.INVALID_ARGUMENT, "The mount file's content doesn't match its digest.")
            partial = path.with_suffix(f".{os.urandom(4).hex()}")
            await asyncio.to_thread(partial.write_bytes, data)
            partial.rename(path)
        return build(api.MountPutFileResponse, exists=path.exists(), checked_at=self._now())

    async def MountGetOrCreate(self, request: api.MountGetOrCreateRequest) -> api.MountGetOrCreateResponse:
        # The SDK's own mounts (its client, a standalone Python) are named and come without files: the
        # interpreter has them.
        for file in request.files:
            if not self.path(file.sha256_hex).exists():
                raise RpcError(Status.INVALID_ARGUMENT, f"Mount file {file.filename} was not uploaded.")
        mount_id = self.keep(request.files, request.deployment_name)
        checksum = hashlib.sha256(self._mounts[mount_id].SerializeToString(deterministic=True)).hexdigest()
        return api.MountGetOrCreateResponse(
            mount_id=mount_id,
            handle_metadata=api.MountHandleMetadata(content_checksum_sha256_hex=checksum),
        )

    # -- for the other services

    def keep(self, files: Iterable[api.MountFile], name: str = "") -> str:
        """The id of a mount of these files, whose contents are here already."""
        contents = api.MountGetOrCreateRequest(deployment_name=name, files=files)
        data = contents.SerializeToString(deterministic=True)
        mount_id = ids.derived_id(ids.MOUNT, data)
        self._used_at[mount_id] = time.time()
        if mount_id not in self._mounts:
            self._mounts[mount_id] = contents
            self.server.store.put(TABLE, mount_id, data)
        return mount_id

    def put(self, data: bytes) -> str:
        """Keep a small file's content; returns its digest."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if not self._touch(path):
            partial = path.with_suffix(f".{os.urandom(4).hex()}")
            partial.write_bytes(data)
            partial.rename(path)
        return digest

    def files(self, mount_id: str) -> list[api.MountFile]:
        """The files of a mount; none if there is no such mount."""
        return list(self._mounts[mount_id].files) if mount_id in self._mounts else []

    def name(self, mount_id: str) -> str:
        """The name of a mount of the SDK's own; "" if it has none."""
        return self._mounts[mount_id].deployment_name if mount_id in self._mounts else ""

    async def root(self, mount_ids: Sequence[str], python: str) -> Path:
        """A directory with the files of these mounts at their absolute paths, later mounts over earlier ones.

        It is made once per set and never changes; bytecode for `python` lies beside the sources.
        """
        key = hashlib.sha256("\0".join([python, *mount_ids]).encode()).hexdigest()[:32]
        root = self._roots / key
        if self._touch(root):
            return root
        if key not in self._building:
            self._building[key] = asyncio.ensure_future(self._build(root, list(mount_ids), python))
        try:
            # Shielded: others may wait for the same root.
            return await asyncio.shield(self._building[key])
        finally:
            if key in self._building and self._building[key].done():
                del self._building[key]

    async def _build(self, root: Path, mount_ids: list[str], python: str) -> Path:
        files = [file for mount_id in mount_ids for file in self._mounts[mount_id].files]
        partial = root.with_suffix(f".{os.urandom(4).hex()}")
        await asyncio.to_thread(self._lay_out, partial, files)
        compiler = await asyncio.create_subprocess_exec(
            *(python, "-m", "compileall", "-q", "-s", str(partial), "-p", "/", str(partial)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        # Sources that don't compile fail where they are imported, as in the cloud.
        await compiler.wait()
        partial.rename(root)
        return root

    def _lay_out(self, directory: Path, files: list[api.MountFile]) -> None:
        (directory / "root").mkdir(parents=True)  # where containers start
        for file in files:
            target = directory / file.filename.lstrip("/")
            if ".." in target.parts:
                raise ValueError(f"mount file {file.filename!r} leaves its root")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path(file.sha256_hex), target)
            target.chmod(file.mode or 0o644)

    async def sweep(self, used: Collection[str], now: float, oldest_container: float) -> None:
        """Forget the mounts that are not among `used`, remove the files that no mount has, and the
        directories that no container has been started with since `oldest_container` was; unless they are
        young.
        """
        oldest = now - UNUSED_KEPT
        for mount_id in list(self._mounts):
            if mount_id not in used and self._used_at[mount_id] < oldest:
                del self._mounts[mount_id]
                del self._used_at[mount_id]
                self.server.store.delete(TABLE, mount_id)
        # Each start of a container touches its directory, so those who live began before or use others.
        unused_root = min(oldest, oldest_container)
        old_files = await asyncio.to_thread(_older, self._files, oldest)
        old_roots = await asyncio.to_thread(_older, self._roots, unused_root)
        # On the loop and looked at again: requests may have touched them meanwhile, and rely on it.
        digests = {file.sha256_hex for mount in self._mounts.values() for file in mount.files}
        files = [path for path in old_files if path.name not in digests and _is_older(path, oldest)]
        roots = [path for path in old_roots if _is_older(path, unused_root)]
        for path in files:
            path.unlink(missing_ok=True)
        trash = [path.rename(path.with_suffix(f".{os.urandom(4).hex()}")) for path in roots]
        for path in trash:  # what a kill leaves of it is as old, and goes with the next sweep
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
        if removed := len(files) + len(roots):
            log.info("Removed %d files and directories of mounts that nothing uses", removed)

    @staticmethod
    def _touch(path: Path) -> bool:
        """Note that a file or directory is in use; False if it isn't there."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def path(self, sha256_hex: str) -> Path:
        """Where the content of that digest is, or would be."""
        return self._files / Path(sha256_hex).name

    def _now(self) -> Timestamp:
        timestamp = Timestamp()
        timestamp.FromNanoseconds(int(self.server.clock.time() * 1e9))
        return timestamp


def _older(directory: Path, than: float) -> list[Path]:
    """What is in a directory and hasn't been used since `than`."""
    return [path for path in directory.iterdir() if _is_older(path, than)]


def _is_older(path: Path, than: float) -> bool:
    try:
        return path.stat().st_mtime < than
    except FileNotFoundError:  # an upload that has got its final name meanwhile
        return False

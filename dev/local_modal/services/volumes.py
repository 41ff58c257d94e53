"""Volumes of both versions: what clients do from outside, and what containers do to their mounts."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from modal_proto import api_pb2

from local_modal.ids import VOLUME
from local_modal.isolation import ISOLATED
from local_modal.objects import Objects, Record
from local_modal.rpc import RpcError, Service, container_caller
from local_modal.services.volume_transfer import DEFAULT_FILE_MODE, PutFiles2, VolumeTransfer
from local_modal.volumes import limits, overlays, paths
from local_modal.volumes.manifest import DIRECTORY, FILE, SYMLINK, Changes, Entry, Manifest, file
from local_modal.volumes.mounted import MountedViews, NotMounted, empty
from local_modal.volumes.store import UnknownVolume, VolumeStore
from local_modal.volumes.views import BoundView, ContainerGone, NotADirectoryInVolume, OpenFiles

if TYPE_CHECKING:
    from local_modal.server import Server

log = logging.getLogger(__name__)

SWEEP_SECONDS = 60.0
LIST_BATCH = 1000
"""Entries per message of a listing, far below the message size limit."""

_FILE_TYPES = {
    FILE: api_pb2.FileEntry.FileType.FILE,
    DIRECTORY: api_pb2.FileEntry.FileType.DIRECTORY,
    SYMLINK: api_pb2.FileEntry.FileType.SYMLINK,
}
_STATUSES: dict[type[Exception], Status] = {
    paths.PathNotFound: Status.NOT_FOUND,
    paths.PathExists: Status.ALREADY_EXISTS,
    paths.InvalidPath: Status.INVALID_ARGUMENT,
    UnknownVolume: Status.NOT_FOUND,
    NotMounted: Status.FAILED_PRECONDITION,
    NotADirectoryInVolume: Status.FAILED_PRECONDITION,
    OpenFiles: Status.FAILED_PRECONDITION,
    ContainerGone: Status.FAILED_PRECONDITION,
    limits.LimitExceeded: Status.RESOURCE_EXHAUSTED,
}

PutFiles = api_pb2.VolumePutFilesRequest


class VolumeService(Service):
    """The Volume RPCs, the block URLs, and the views that containers mount.

    `VolumeCommit` never answers `skip_reload`: as `modal/volume.py` documents it, a commit reloads, so for
    volumes of either version a commit with open files publishes the changes and then fails in the reload.
    Code that gets along with that gets along with less.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.objects = Objects(server, VOLUME, "Volume", self._drop)
        self.files: VolumeStore
        self.mounted: MountedViews
        self._background: list[asyncio.Task[None]] = []
        self.transfer = VolumeTransfer(server)

    async def start(self) -> None:
        """Load all Volumes, remove the contents that none of them has any more and what containers of a
        former server have left; find out how volumes can be mounted."""
        await self.objects.start()
        self.files = await asyncio.to_thread(VolumeStore, self.server.state_dir / "volumes")
        self.transfer.blobs = self.files.blobs
        records = {record.object_id: record for record in self.objects.all()}
        for volume_id, record in records.items():
            self.files.create(volume_id, _limits(record))
        for volume_id in self.files.volume_ids() - records.keys():
            self.files.delete(volume_id)
        await asyncio.to_thread(self.files.collect_garbage)
        views = self.server.state_dir / "views"
        await asyncio.to_thread(empty, views)
        self.mounted = MountedViews(self.files, views, self._pids, await self._overlays(views))
        for work in (self._commit_in_background(), self._sweep_in_background()):
            self._background.append(asyncio.create_task(work))

    async def stop(self) -> None:
        """End the background work."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.objects.stop()

    async def release_app(self, app_id: str) -> None:
        """Remove what an app that has ended owned anonymously."""
        await self.objects.release_app(app_id)

    async def open_views(
        self, task_id: str, volume_mounts: Sequence[api_pb2.VolumeMount], environment_name: str = ""
    ) -> list[BoundView]:
        """A view of each mounted volume for a container about to start, in the given order.

        Raises:
            RpcError: NOT_FOUND, a volume has been deleted; FAILED_PRECONDITION or INVALID_ARGUMENT, a sub
                path can't be mounted.
        """
        with _as_rpc_errors():
            return await self.mounted.open(task_id, volume_mounts)

    async def prepare_views(self, volume_mounts: Iterable[api_pb2.VolumeMount]) -> None:
        """Make the first views of these volumes ready as fast as later ones are."""
        try:
            await self.mounted.prepare(mount.volume_id for mount in volume_mounts)
        except UnknownVolume:
            pass  # deleted since the function was deployed: whoever calls it is told

    async def close_views(self, task_id: str) -> None:
        """Remove the views of a container that has ended; what it hasn't committed is lost."""
        await self.mounted.close(task_id)

    # The objects.

    async def VolumeGetOrCreate(
        self, request: api_pb2.VolumeGetOrCreateRequest
    ) -> api_pb2.VolumeGetOrCreateResponse:
        record, _ = self.objects.get_or_create(
            request.deployment_name,
            request.environment_name,
            request.object_creation_type,
            app_id=request.app_id,
            version=request.version or api_pb2.VOLUME_FS_VERSION_V1,
        )
        self.files.create(record.object_id, _limits(record))
        # A version that differs from the requested one is the SDK's to complain about (modal/volume.py).
        metadata = _metadata(record)
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=record.object_id, version=metadata.version, metadata=metadata
        )

    async def VolumeGetById(self, request: api_pb2.VolumeGetByIdRequest) -> api_pb2.VolumeGetByIdResponse:
        record = self.objects.get(request.volume_id)
        return api_pb2.VolumeGetByIdResponse(volume_id=record.object_id, metadata=_metadata(record))

    async def VolumeList(self, request: api_pb2.VolumeListRequest) -> api_pb2.VolumeListResponse:
        return api_pb2.VolumeListResponse(
            items=[
                api_pb2.VolumeListItem(
                    label=record.name,
                    volume_id=record.object_id,
                    created_at=record.created_at,
                    metadata=_metadata(record),
                )
                for record in self.objects.page(request.environment_name, request.pagination)
            ],
            environment_name=self.server.environments.resolve(request.environment_name),
        )

    async def VolumeHeartbeat(self, request: api_pb2.VolumeHeartbeatRequest) -> Empty:
        self.objects.heartbeat(request.volume_id)
        return Empty()

    async def VolumeRename(self, request: api_pb2.VolumeRenameRequest) -> Empty:
        self.objects.rename(request.volume_id, request.name)
        return Empty()

    async def VolumeDelete(self, request: api_pb2.VolumeDeleteRequest) -> Empty:
        await self.objects.delete(request.volume_id)
        return Empty()

    # Files, from outside.

    async def VolumeListFiles(
        self, request: api_pb2.VolumeListFilesRequest
    ) -> AsyncIterator[api_pb2.VolumeListFilesResponse]:
        for entries in self._listing(request):
            yield api_pb2.VolumeListFilesResponse(entries=entries)

    async def VolumeListFiles2(
        self, request: api_pb2.VolumeListFiles2Request
    ) -> AsyncIterator[api_pb2.VolumeListFiles2Response]:
        for entries in self._listing(request):
            yield api_pb2.VolumeListFiles2Response(entries=entries)

    async def VolumePutFiles(self, request: PutFiles) -> Empty:
        self.objects.get(request.volume_id)
        entries = await asyncio.to_thread(self.transfer.uploaded_files, request.files)
        await self._upload(request.volume_id, entries, not request.disallow_overwrite_existing_files)
        return Empty()

    async def VolumePutFiles2(self, request: PutFiles2) -> api_pb2.VolumePutFiles2Response:
        self.objects.get(request.volume_id)
        overwrite = not request.disallow_overwrite_existing_files
        missing = await asyncio.to_thread(self.transfer.missing_blocks, request.files)
        if missing:
            # Before the client uploads gigabytes in vain.
            placeholders = {put.path: file("", put.size, DEFAULT_FILE_MODE, 0) for put in request.files}
            with _as_rpc_errors():
                self.files.rehearse(
                    request.volume_id, lambda manifest: paths.upload(manifest, placeholders, overwrite)
                )
            return api_pb2.VolumePutFiles2Response(missing_blocks=missing)
        entries = await asyncio.to_thread(self.transfer.assembled_files, request.files)
        await self._upload(request.volume_id, entries, overwrite)
        return api_pb2.VolumePutFiles2Response()

    async def VolumeGetFile2(self, request: api_pb2.VolumeGetFile2Request) -> api_pb2.VolumeGetFile2Response:
        entry = self._file(request.volume_id, request.path)
        start = min(request.start, entry.size)
        end = min(start + request.len, entry.size) if request.len else entry.size
        urls = self.transfer.urls(entry, start, end)
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=entry.size, start=start, len=end - start)

    async def VolumeRemoveFile(self, request: api_pb2.VolumeRemoveFileRequest) -> Empty:
        return await self._remove(request)

    async def VolumeRemoveFile2(self, request: api_pb2.VolumeRemoveFile2Request) -> Empty:
        return await self._remove(request)

    async def VolumeCopyFiles(self, request: api_pb2.VolumeCopyFilesRequest) -> Empty:
        return await self._copy(request)

    async def VolumeCopyFiles2(self, request: api_pb2.VolumeCopyFiles2Request) -> Empty:
        return await self._copy(request)

    # Mounts, from inside containers.

    async def VolumeCommit(self, request: api_pb2.VolumeCommitRequest) -> api_pb2.VolumeCommitResponse:
        task_id = container_caller()
        with _as_rpc_errors():
            await self.mounted.commit(task_id, request.volume_id)
        return api_pb2.VolumeCommitResponse(skip_reload=False)

    async def VolumeReload(self, request: api_pb2.VolumeReloadRequest) -> Empty:
        task_id = container_caller()
        with _as_rpc_errors():
            await self.mounted.reload(task_id, request.volume_id)
        return Empty()

    # How.

    def _pids(self, task_id: str) -> Iterable[int]:
        return self.server.workers.pids(task_id)

    async def _overlays(self, directory: Path) -> overlays.Kind | None:
        options, isolation = self.server.options, self.server.workers.isolation
        if isolation.mode != ISOLATED or options.copy_volumes:
            return None
        found = await overlays.detect(options.python, directory)
        if isinstance(found, str):
            log.info("Volumes are mounted as copies, since overlays can't be: %s", found)
            return None
        remark = f": {found.remark}" if found.remark else ""
        log.info("Volumes are mounted as overlays (%s)%s.", found.options, remark)
        return found

    async def _commit_in_background(self) -> None:
        seconds = self.server.options.background_commits
        while seconds > 0:
            await asyncio.sleep(seconds)
            try:
                await self.mounted.commit_in_background()
            except Exception:
                log.exception("The background commits failed; the next are tried in %s s", seconds)

    async def _sweep_in_background(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                removed = await asyncio.to_thread(self.files.sweep, self.mounted.contents())
                log.debug("Removed %s contents that no volume has any more", removed)
            except OSError as error:
                log.warning("Contents that no volume has any more could not be removed: %s", error)

    def _manifest(self, volume_id: str) -> Manifest:
        self.objects.get(volume_id)
        return self.files.head(volume_id).manifest

    def _listing(
        self, request: api_pb2.VolumeListFilesRequest | api_pb2.VolumeListFiles2Request
    ) -> Iterator[list[api_pb2.FileEntry]]:
        with _as_rpc_errors():
            found = paths.list_entries(self._manifest(request.volume_id), request.path, request.recursive)
        if request.max_entries:
            found = found[: request.max_entries]
        for start in range(0, len(found), LIST_BATCH):
            yield [_file_entry(path, entry) for path, entry in found[start : start + LIST_BATCH]]

    def _file(self, volume_id: str, path: str) -> Entry:
        with _as_rpc_errors():
            entry = paths.look_up(self._manifest(volume_id), path)
        if entry is None or entry.kind != FILE:
            raise RpcError(Status.INVALID_ARGUMENT, f"'{path}' is not a file.")
        return entry

    async def _update(self, volume_id: str, compute: Callable[[Manifest], Changes]) -> None:
        self.objects.get(volume_id)
        with _as_rpc_errors():
            await asyncio.to_thread(self.files.update, volume_id, compute)

    async def _upload(self, volume_id: str, files: dict[str, Entry], overwrite: bool) -> None:
        await self._update(volume_id, lambda manifest: paths.upload(manifest, files, overwrite))

    async def _remove(
        self, request: api_pb2.VolumeRemoveFileRequest | api_pb2.VolumeRemoveFile2Request
    ) -> Empty:
        await self._update(
            request.volume_id, lambda manifest: paths.remove(manifest, request.path, request.recursive)
        )
        return Empty()

    async def _copy(self, request: api_pb2.VolumeCopyFilesRequest | api_pb2.VolumeCopyFiles2Request) -> Empty:
        now = time.time_ns()
        await self._update(
            request.volume_id,
            lambda manifest: paths.copy(
                manifest, request.src_paths, request.dst_path, request.recursive, now
            ),
        )
        return Empty()

    async def _drop(self, record: Record) -> None:
        await self.mounted.forget(record.object_id)
        await asyncio.to_thread(self.files.delete, record.object_id)


@contextmanager
def _as_rpc_errors() -> Iterator[None]:
    try:
        yield
    except tuple(_STATUSES) as error:
        raise RpcError(_STATUSES[type(error)], str(error)) from None
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        log.warning("Work on a volume failed: %s", error)
        raise RpcError(
            Status.RESOURCE_EXHAUSTED if full else Status.FAILED_PRECONDITION,
            f"The volume's files could not be read or written: {error}",
        ) from None


def _limits(record: Record) -> limits.Limits:
    return limits.VERSION_2 if record.version == api_pb2.VOLUME_FS_VERSION_V2 else limits.VERSION_1


def _file_entry(path: str, entry: Entry) -> api_pb2.FileEntry:
    # A name that isn't UTF-8 can't travel in a protobuf string.
    return api_pb2.FileEntry(
        path=path.encode("utf-8", "replace").decode(),
        type=_FILE_TYPES[entry.kind],
        mtime=max(0, entry.mtime_ns // 10**9),
        size=entry.size,
    )


def _metadata(record: Record) -> api_pb2.VolumeMetadata:
    return api_pb2.VolumeMetadata(
        version=api_pb2.VolumeFsVersion.ValueType(record.version),
        name=record.name,
        creation_info=record.creation_info(),
    )

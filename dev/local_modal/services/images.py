"""Images can't be built here. What a layer says about the environment is honoured; a configured interpreter
stands in for what it installs.
"""

from __future__ import annotations

import fnmatch
import logging
import shlex
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal import ids
from local_modal.rpc import RpcError, Service
from local_modal.services.environments import IMAGE_BUILDER_VERSION

log = logging.getLogger(__name__)

TABLE = "images"


@dataclass
class ImageView:
    """What a container takes from its image."""

    environ: dict[str, str] = field(default_factory=dict)
    workdir: str = ""
    mount_ids: list[str] = field(default_factory=list)
    """Files copied into the image."""
    base: str = ""
    """The tag of the FROM line."""


class ImageService(Service):
    """Image* RPCs, and `view` for the workers."""

    async def start(self) -> None:
        self._images = {
            key: api.Image.FromString(data) for key, data in self.server.store.load(TABLE).items()
        }
        self._reported: set[str] = set()

    async def ImageGetOrCreate(self, request: api.ImageGetOrCreateRequest) -> api.ImageGetOrCreateResponse:
        if request.image.build_function_def or request.image.HasField("build_function"):
            raise RpcError(
                Status.INVALID_ARGUMENT, "Image.run_function is not supported by the local Modal server."
            )
        data = request.image.SerializeToString(deterministic=True)
        image_id = ids.derived_id(ids.IMAGE, data)
        if image_id not in self._images:
            self._images[image_id] = request.image
            self.server.store.put(TABLE, image_id, data)
        self._report_ignored(request.image)
        return api.ImageGetOrCreateResponse(
            image_id=image_id, result=_SUCCESS, metadata=self._metadata(image_id)
        )

    async def ImageJoinStreaming(
        self, request: api.ImageJoinStreamingRequest
    ) -> AsyncIterator[api.ImageJoinStreamingResponse]:
        yield api.ImageJoinStreamingResponse(
            result=_SUCCESS, metadata=self._metadata(request.image_id), eof=True
        )

    async def ImageFromId(self, request: api.ImageFromIdRequest) -> api.ImageFromIdResponse:
        if request.image_id not in self._images:
            raise RpcError(Status.NOT_FOUND, f"Image {request.image_id} not found.")
        return api.ImageFromIdResponse(image_id=request.image_id, metadata=self._metadata(request.image_id))

    def view(self, image_id: str) -> ImageView:
        """Environment, working directory and copied files of an image, over all its layers."""
        image = self._images.get(image_id)
        if image is None:
            return ImageView()
        view = ImageView()
        for base in image.base_images:
            if base.image_id:
                view = self.view(base.image_id)
        for command in image.dockerfile_commands:
            verb, _, rest = command.strip().partition(" ")
            match verb.upper():
                case "FROM" if rest.strip() != "base":
                    view.base = rest.strip()
                case "ENV":
                    view.environ.update(_parse_env(rest))
                case "WORKDIR":
                    view.workdir = shlex.split(rest)[0]
        if image.context_mount_id and any(
            command.split()[:1] in (["COPY"], ["ADD"]) for command in image.dockerfile_commands
        ):
            view.mount_ids.append(image.context_mount_id)
        return view

    def python(self, image_id: str) -> str:
        """The interpreter that stands in for an image."""
        base = self.view(image_id).base
        for pattern, python in self.server.options.image_pythons:
            if fnmatch.fnmatchcase(base, pattern):
                return python
        return self.server.options.python

    def _report_ignored(self, image: api.Image) -> None:
        for command in image.dockerfile_commands:
            if command.split()[:1] in (["RUN"], ["FROM"]) and command not in self._reported:
                self._reported.add(command)
                log.info("Image: provided by the configured interpreter, not executed: %s", command)

    def _metadata(self, image_id: str) -> api.ImageMetadata:
        return api.ImageMetadata(
            image_builder_version=IMAGE_BUILDER_VERSION, workdir=self.view(image_id).workdir
        )


_SUCCESS = api.GenericResult(status=api.GenericResult.GENERIC_STATUS_SUCCESS)


def _parse_env(rest: str) -> dict[str, str]:
    words = shlex.split(rest)
    if words and "=" not in words[0]:  # the old form: ENV NAME the whole rest
        name, _, value = rest.strip().partition(" ")
        return {name: value.strip()}
    return dict(word.split("=", 1) for word in words if "=" in word)

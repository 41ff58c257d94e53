"""Images can't be built here. What a layer says about the environment is honoured, the files that it copies
are there, and a configured interpreter stands in for what it installs: if that lacks a package, the build
fails.
"""

from __future__ import annotations

import fnmatch
import logging
import re
import shlex
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from grpclib.const import Status
from modal_proto import api_pb2 as api
from packaging.requirements import Requirement

from local_modal import ids
from local_modal.images import dockerfile, packages
from local_modal.images.interpreter import Installed, probe
from local_modal.rpc import RpcError, Service
from local_modal.services.environments import IMAGE_BUILDER_VERSION

log = logging.getLogger(__name__)

TABLE = "images"
REFUSE, WARN = "refuse", "warn"
"""What a missing package does to a deployment."""
UNUSED_KEPT = 24 * 3600.0
"""Seconds that an image is remembered which no function has; the SDK asks for it again at each deployment."""
IGNORED = ("RUN", "FROM", "USER", "ENTRYPOINT", "SHELL")
"""Instructions that are recorded and not obeyed."""

_PYTHON_TAG = re.compile(r"(?:(?:^|/)python:|-python|:py)(\d+\.\d+)")
_MICROMAMBA = re.compile(r"\bpython=(\d+\.\d+)")
_STANDALONE = re.compile(r"python-build-standalone\.\d+\.(\d+\.\d+)")
_CREDENTIALS = re.compile(r"://[^/\s@]*@")
_SUCCESS = api.GenericResult(status=api.GenericResult.GENERIC_STATUS_SUCCESS)


@dataclass
class ImageView:
    """What a container takes from its image."""

    environ: dict[str, str] = field(default_factory=dict)
    workdir: str = ""
    mount_ids: list[str] = field(default_factory=list)
    """Files copied into the image, the later ones over the earlier ones."""
    base: str = ""
    """The tag of the FROM line."""
    python_version: str = ""
    """Such as 3.12, if the image says it."""
    missing: list[str] = field(default_factory=list)
    """Packages that it installs and the interpreter lacks, if that is only warned of."""


class ImageService(Service):
    """Image* RPCs, and `view` for the workers."""

    async def start(self) -> None:
        self._images = {
            key: api.Image.FromString(data) for key, data in self.server.store.load(TABLE).items()
        }
        self._views: dict[str, ImageView] = {}
        self._used_at: dict[str, float] = dict.fromkeys(self._images, time.time())
        self._installed: dict[str, Installed] = {}
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
        self._used_at[image_id] = time.time()
        self._report_ignored(request.image)
        missing = await self._missing(image_id)
        result = _SUCCESS
        if missing and self.server.options.missing_packages == REFUSE:
            result = api.GenericResult(
                status=api.GenericResult.GENERIC_STATUS_FAILURE, exception=self._advice(image_id, missing)
            )
        else:
            self.view(image_id).missing = missing
        return api.ImageGetOrCreateResponse(
            image_id=image_id, result=result, metadata=self._metadata(image_id)
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

    # -- for the other services

    def view(self, image_id: str) -> ImageView:
        """Environment, working directory and copied files of an image, over all its layers."""
        if image_id not in self._images:
            return ImageView()
        if image_id not in self._views:
            self._views[image_id] = self._read(self._images[image_id])
        return self._views[image_id]

    def python(self, image_id: str) -> str:
        """The interpreter that stands in for an image."""
        base = self.view(image_id).base
        for pattern, python in self.server.options.image_pythons:
            if fnmatch.fnmatchcase(base, pattern):
                return python
        return self.server.options.python

    async def warnings(self, image_ids: Iterable[str]) -> list[api.Warning]:
        """What whoever deploys functions with these images should know of them."""
        texts: dict[str, None] = {}  # in order, and each once
        for image_id in sorted(image_ids):
            if image_id in self._images:
                texts.update(dict.fromkeys(await self._warnings(image_id)))
        kind = api.Warning.WARNING_TYPE_FUNCTION_CONFIGURATION
        return [api.Warning(type=kind, message=text) for text in texts]

    async def _warnings(self, image_id: str) -> list[str]:
        view, texts = self.view(image_id), []
        found = (await self._probe(image_id)).python_version
        if view.python_version and view.python_version != found:
            texts.append(
                f"The image has Python {view.python_version}, but {self.python(image_id)}, which stands in "
                f"for it, has {found}: --image-python '{view.base}=PATH' chooses another one."
            )
        missing = [phrase for layer in self._layers(image_id) for phrase in self.view(layer).missing]
        return [*texts, self._advice(image_id, missing)] if missing else texts

    def sweep(self, used: Iterable[str], now: float) -> set[str]:
        """Forget the images that no function has, unless they were asked for lately; returns the ids of the
        mounts that the others are made of.
        """
        lately = [image_id for image_id, used_at in self._used_at.items() if used_at > now - UNUSED_KEPT]
        kept = {layer for image_id in {*used, *lately} for layer in self._layers(image_id)}
        for image_id in self._images.keys() - kept:
            del self._images[image_id]
            del self._used_at[image_id]
            self._views.pop(image_id, None)
            self.server.store.delete(TABLE, image_id)
        mounts = {mount_id for image_id in kept for mount_id in self.view(image_id).mount_ids}
        return mounts | {self._images[image_id].context_mount_id for image_id in kept}

    # -- reading layers

    def _read(self, image: api.Image) -> ImageView:
        view = ImageView()
        for base in image.base_images:
            if base.image_id:
                below = self.view(base.image_id)
                view = ImageView(
                    dict(below.environ),
                    below.workdir,
                    list(below.mount_ids),
                    below.base,
                    below.python_version,
                )
        for verb, rest in dockerfile.instructions(image.dockerfile_commands):
            match verb:
                case "FROM" if rest != "base":
                    view.base = re.sub(r"^--\S+\s+|\s+[aA][sS]\s+\S+$", "", rest)
                    if version := _PYTHON_TAG.search(view.base):
                        view.python_version = version[1]
                case "ENV":
                    view.environ.update(dockerfile.environment(rest))
                case "WORKDIR":
                    view.workdir = shlex.split(rest)[0]
                case "RUN" if "micromamba" in rest and (version := _MICROMAMBA.search(rest)):
                    view.python_version = version[1]
        if version := _STANDALONE.match(self.server.mounts.name(image.context_mount_id)):
            view.python_version = version[1]
        files = self._copied(image, view.workdir)
        if files:
            view.mount_ids.append(self.server.mounts.keep(files))
        return view

    def _copied(self, image: api.Image, workdir: str) -> list[api.MountFile]:
        """The files that a layer copies from its build context, at their paths in the image."""
        context = {file.filename: file for file in self.server.mounts.files(image.context_mount_id)}
        for file in image.context_files:
            digest = self.server.mounts.put(file.data)
            context[file.filename] = api.MountFile(filename=file.filename, sha256_hex=digest, mode=0o644)
        files = {}
        for verb, rest in dockerfile.instructions(image.dockerfile_commands):
            copying = dockerfile.copy(rest) if verb in ("COPY", "ADD") else None
            if copying is None:
                continue
            for path, source in dockerfile.copied(copying, list(context), workdir).items():
                file = api.MountFile.FromString(context[source].SerializeToString())
                file.filename = path
                files[path] = file
        return list(files.values())

    def _layers(self, image_id: str) -> list[str]:
        """The image and all that it builds upon, the newest layer first."""
        layers, pending = [], [image_id]
        while pending:
            layer = pending.pop()
            if layer in self._images:
                layers.append(layer)
                pending += [base.image_id for base in self._images[layer].base_images if base.image_id]
        return layers

    # -- packages

    def _requirements(self, image_id: str) -> list[Requirement]:
        """What this layer alone installs; the ones below have been looked at when they were made."""
        view = self.view(image_id)

        def read(path: str) -> str | None:
            for mount_id in reversed(view.mount_ids):
                for file in self.server.mounts.files(mount_id):
                    if file.filename == path:
                        return self.server.mounts.path(file.sha256_hex).read_text(errors="replace")
            return None

        return [
            requirement
            for verb, rest in dockerfile.instructions(self._images[image_id].dockerfile_commands)
            if verb == "RUN"
            for requirement in packages.installed_by(rest, read, view.workdir or "/")
        ]

    async def _missing(self, image_id: str) -> list[str]:
        requirements = self._requirements(image_id)
        if not requirements:
            return []
        if not (await self._probe(image_id)).lacking(requirements):
            return []
        # Perhaps it has been installed meanwhile.
        return (await self._probe(image_id, again=True)).lacking(requirements)

    async def _probe(self, image_id: str, *, again: bool = False) -> Installed:
        python = self.python(image_id)
        if again or python not in self._installed:
            try:
                self._installed[python] = await probe(python)
            except (OSError, ValueError) as error:
                raise RpcError(Status.FAILED_PRECONDITION, f"The image's interpreter: {error}") from None
        return self._installed[python]

    def _advice(self, image_id: str, missing: list[str]) -> str:
        python = self.python(image_id)
        arguments = shlex.join(phrase.partition(" ")[0] for phrase in missing)
        return (
            f"The image installs {', '.join(missing)}. The local Modal server builds no images: {python} "
            f"stands in for this one and lacks that. Install it there with `{python} -m pip install "
            f"{arguments}`, or start the server with --image-python '{self.view(image_id).base}=PATH' for "
            f"an interpreter that has it, or with --missing-packages {WARN}."
        )

    def _report_ignored(self, image: api.Image) -> None:
        for verb, rest in dockerfile.instructions(image.dockerfile_commands):
            line = _CREDENTIALS.sub("://***@", f"{verb} {rest}")
            if verb in IGNORED and line not in ("FROM base", "ENTRYPOINT []") and line not in self._reported:
                self._reported.add(line)
                log.info("Image: left to the configured interpreter, not executed: %s", line)

    def _metadata(self, image_id: str) -> api.ImageMetadata:
        return api.ImageMetadata(
            image_builder_version=IMAGE_BUILDER_VERSION, workdir=self.view(image_id).workdir
        )

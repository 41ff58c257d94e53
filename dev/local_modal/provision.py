"""What a container is given: its directories, file tree, environment, arguments and limits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modal_proto import api_pb2 as api

from local_modal import isolation
from local_modal.environ import Places, container_environ, relocate
from local_modal.isolation import Interpreter
from local_modal.limits import ContainerLimits
from local_modal.model import Task
from local_modal.volumes.views import BoundView

if TYPE_CHECKING:
    from local_modal.server import Server
    from local_modal.services.functions import Resolved

ENTRYPOINT = "modal._container_entrypoint"
VAR = ("cache", "lib", "log", "spool", "tmp")


@dataclass(frozen=True)
class Provision:
    """Everything that a container's first process needs."""

    interpreter: Interpreter
    environ: dict[str, str]
    spec: dict[str, Any]
    """What the launcher reads; see launcher.py."""
    spec_path: Path
    """Where the same is on disk."""
    limits: ContainerLimits


class Provisioner:
    """Prepares containers below `directory`, one sub-directory each."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server = server
        self._dir = directory
        self._interpreters: dict[str, Interpreter] = {}

    async def prepare(self, definition: api.Function) -> None:
        """Lay out the files that all containers of a function share."""
        await self.server.mounts.root(self._mount_ids(definition), self._python(definition))
        await self.server.volumes.prepare_views(definition.volume_mounts)

    async def interpreter(self, python: str) -> Interpreter:
        """What is known of an interpreter.

        Raises:
            OSError, ValueError: it doesn't work.
        """
        if python not in self._interpreters:
            self._interpreters[python] = await isolation.inspect_interpreter(python)
        return self._interpreters[python]

    async def provide(self, task: Task, resolved: Resolved) -> Provision:
        """Prepare one container; the caller closes its limits and views and removes its directory, also if
        this fails."""
        definition = resolved.definition
        scratch = self._dir / task.task_id
        _make_directories(scratch)
        interpreter = await self.interpreter(self._python(definition))
        root = await self.server.mounts.root(self._mount_ids(definition), self._python(definition))
        views = await self.server.volumes.open_views(
            task.task_id, definition.volume_mounts, resolved.app.environment
        )
        arguments = await self._arguments(task, resolved)
        (scratch / "modal" / "arguments").write_bytes(arguments.SerializeToString())
        image = self.server.images.view(definition.image_id)
        mode = self.server.workers.isolation.mode
        isolated = mode == isolation.ISOLATED
        if isolated:
            places = Places("/root", "/tmp", "/root:/pkg", "/__modal/arguments")
        else:
            places = Places(
                str(scratch / "home"),
                str(scratch / "tmp"),
                f"{root}/root:{root}/pkg",
                str(scratch / "modal" / "arguments"),
            )
        environ = container_environ(
            server_url=self.server.url,
            task_id=task.task_id,
            container_secret=self.server.access.admit(task.task_id),
            image_id=definition.image_id,
            environment=resolved.app.environment,
            interpreter=interpreter,
            image=image.environ,
            secrets=self.server.secrets.environ(definition.secret_ids),
            places=places,
        )
        if isolated:
            cwd = image.workdir or "/root"
            binds = self._binds(scratch, root, cwd, interpreter, views, environ)
        else:
            cwd = f"{root}/{image.workdir.strip('/')}" if image.workdir else f"{root}/root"
            cwd = cwd if os.path.isdir(cwd) else str(scratch / "work")
            binds = []
            environ = relocate(environ, {view.mount_path: str(view.host_path) for view in views})
        limits = self.server.workers.limits.container(task.task_id, definition.resources)
        spec = {
            "mode": mode,
            "parent_pid": os.getpid(),
            "cgroups": limits.procs,
            "cwd": cwd,
            "hostname": isolation.HOSTNAME,
            "fresh_monotonic": self.server.workers.isolation.fresh_monotonic,
            "scratch": str(scratch / "root"),
            "binds": binds,
            "overlays": [overlay for view in views if (overlay := view.overlay())],
            "foreign_path": list(interpreter.foreign),
            "new_interpreter": limits.counts_memory,
            "module": ENTRYPOINT,
            "argv": [],
        }
        spec_path = scratch / "spec.json"
        spec_path.write_text(json.dumps(spec))
        return Provision(interpreter, environ, spec, spec_path, limits)

    def _binds(
        self,
        scratch: Path,
        root: Path,
        cwd: str,
        interpreter: Interpreter,
        views: Iterable[BoundView],
        environ: Mapping[str, str],
    ) -> list[dict[str, object]]:
        """Later ones lie on top of earlier ones."""
        binds: list[dict[str, object]] = [
            {"target": "/tmp", "source": str(scratch / "tmp")},
            {"target": "/root", "source": str(scratch / "home")},
            {"target": "/var", "source": str(scratch / "var")},
            {"target": "/__modal", "source": str(scratch / "modal")},
            *isolation.share_binds(self.server.options.share),
            *isolation.system_binds(environ),
            *isolation.interpreter_binds(interpreter, scratch / "empty"),
            *isolation.state_binds(self.server.state_dir, interpreter, scratch / "empty"),
            *isolation.mount_binds(root),
        ]
        on_host = isolation.visible(cwd) and os.path.isdir(cwd)
        if not on_host and cwd not in isolation.OWN and not (root / cwd.strip("/")).is_dir():
            binds.append({"target": cwd, "source": str(scratch / "work")})
        for view in views:
            binds += view.binds()
        return binds

    async def _arguments(self, task: Task, resolved: Resolved) -> api.ContainerArguments:
        layout = self.server.functions.layout(resolved.app)
        present = {entry.object_id for entry in layout.objects}
        for dependency in resolved.definition.object_dependencies:
            if dependency.object_id not in present:
                layout.objects.append(await self._dependency(dependency.object_id))
        return api.ContainerArguments(
            task_id=task.task_id,
            function_id=resolved.function_id,
            app_id=resolved.app.app_id,
            function_def=resolved.definition,
            serialized_params=resolved.serialized_params,
            environment_name=resolved.app.environment,
            app_layout=layout,
        )

    async def _dependency(self, object_id: str) -> api.Object:
        entry = api.Object(object_id=object_id)
        if object_id.startswith("vo-"):
            volume = await self.server.volumes.VolumeGetById(api.VolumeGetByIdRequest(volume_id=object_id))
            entry.volume_metadata.CopyFrom(volume.metadata)
        return entry

    def _mount_ids(self, definition: api.Function) -> list[str]:
        return [*self.server.images.view(definition.image_id).mount_ids, *definition.mount_ids]

    def _python(self, definition: api.Function) -> str:
        return self.server.images.python(definition.image_id)


def _make_directories(scratch: Path) -> None:
    for name in ("tmp", "home", "modal", "root", "work", "empty", *(f"var/{name}" for name in VAR)):
        (scratch / name).mkdir(parents=True)
    for name in ("tmp", "var/tmp"):
        (scratch / name).chmod(0o1777)
    (scratch / "var" / "run").symlink_to("/run")

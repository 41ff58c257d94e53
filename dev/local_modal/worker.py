"""Containers as processes: what they are started with, how they are signalled, and what becomes of them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from modal_proto import api_pb2 as api

from local_modal import isolation
from local_modal.environ import Places, container_environ, relocate
from local_modal.isolation import Interpreter, Isolation
from local_modal.model import Task
from local_modal.output import OutputPump
from local_modal.volumes.views import BoundView

if TYPE_CHECKING:
    from local_modal.server import Server
    from local_modal.services.functions import Resolved

log = logging.getLogger(__name__)

LAUNCH_FAILED = -1
"""The exit code of a container whose process couldn't be started."""


@dataclass
class _Process:
    task: Task
    process: asyncio.subprocess.Process
    pumps: list[OutputPump] = field(default_factory=list)


class Workers:
    """Starts, signals and buries the processes of containers."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.isolation = Isolation(isolation.SHARED, "not examined yet")
        self._dir = server.state_dir / "tasks"
        self._processes: dict[str, _Process] = {}
        self._interpreters: dict[str, Interpreter] = {}
        self._launching: set[str] = set()

    async def start(self) -> None:
        """Find out what isolation is possible; remove what containers of a former server left.

        Raises:
            OSError, ValueError: the configured interpreter doesn't work.
        """
        await self._interpreter(self.server.options.python)
        self.isolation = await isolation.detect(self.server.options.python)
        await asyncio.to_thread(shutil.rmtree, self._dir, ignore_errors=True)
        self._dir.mkdir()

    async def wait_all(self) -> None:
        """Return when no container is left and everything of it is cleared away."""
        while self._launching:
            await asyncio.sleep(0.01)

    # -- for the engine

    async def launch(self, task: Task, resolved: Resolved) -> None:
        """Run a container from its start to its end; the engine hears of the end, whatever happens."""
        self._launching.add(task.task_id)
        returncode = LAUNCH_FAILED
        try:
            returncode = await self._run(task, resolved)
        except Exception as error:
            log.exception("Container %s of %s could not be started", task.task_id, task.function_name)
            task.result = task.result or api.GenericResult(
                status=api.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE,
                exception=f"The container could not be started: {error}",
            )
        finally:
            self.server.access.dismiss(task.task_id)
            self.server.engine.exited(task.task_id, returncode)
            try:
                await self.server.volumes.close_views(task.task_id)
                await asyncio.to_thread(shutil.rmtree, self._dir / task.task_id, ignore_errors=True)
            finally:
                self._launching.discard(task.task_id)

    async def prepare(self, definition: api.Function) -> None:
        """Lay out the files that containers of this function need, so that the first one starts as fast as
        the others.
        """
        await self.server.mounts.root(self._mount_ids(definition), self._python(definition))

    def interrupt(self, task_id: str) -> None:
        """SIGINT to the container's own process: it ends gracefully, with its exit handlers and final
        commits.
        """
        self.signal(task_id, signal.SIGINT)

    def kill(self, task_id: str) -> None:
        """SIGKILL; everything in the container dies with its own process."""
        self.signal(task_id, signal.SIGKILL)

    def signal(self, task_id: str, signum: int) -> None:
        """Send a signal to the container's own process, or end one that isn't that far."""
        entry = self._processes.get(task_id)
        if entry is None:
            return
        pid = self.entry_pid(task_id)
        try:
            if pid is not None:
                os.kill(pid, signum)
            elif signum in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
                entry.process.kill()
        except ProcessLookupError:
            pass  # it has ended meanwhile

    def drain_output(self, task_id: str) -> None:
        """Read everything that the container has printed up to now."""
        entry = self._processes.get(task_id)
        for pump in entry.pumps if entry else []:
            pump.drain()

    # -- for others

    def is_live(self, task_id: str) -> bool:
        """Whether the container has a process."""
        return task_id in self._processes

    def pids(self, task_id: str) -> list[int]:
        """The host's pids of all live processes of the container."""
        entry = self._processes.get(task_id)
        return _descendants(entry.process.pid) if entry else []

    def entry_pid(self, task_id: str) -> int | None:
        """The host's pid of the container's own process, the one that runs user code."""
        entry = self._processes.get(task_id)
        if entry is None:
            return None
        parents = [entry.process.pid]
        if self.isolation.mode == isolation.ISOLATED:
            parents = _children(entry.process.pid)
        candidates = [pid for parent in parents for pid in _children(parent)]
        # Orphans of user code have the same parent, but came later.
        return min(candidates, key=_started, default=None)

    # -- the life of one container

    async def _run(self, task: Task, resolved: Resolved) -> int:
        definition = resolved.definition
        scratch = self._dir / task.task_id
        for name in ("tmp", "home", "modal", "root", "work", "empty"):
            (scratch / name).mkdir(parents=True)
        interpreter = await self._interpreter(self._python(definition))
        root = await self.server.mounts.root(self._mount_ids(definition), self._python(definition))
        views = await self.server.volumes.open_views(
            task.task_id, definition.volume_mounts, resolved.app.environment
        )
        arguments = await self._arguments(task, resolved)
        (scratch / "modal" / "arguments").write_bytes(arguments.SerializeToString())
        image = self.server.images.view(definition.image_id)
        isolated = self.isolation.mode == isolation.ISOLATED
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
            binds = self._binds(scratch, root, cwd, interpreter, views)
        else:
            cwd = f"{root}/{image.workdir.strip('/')}" if image.workdir else f"{root}/root"
            cwd = cwd if os.path.isdir(cwd) else str(scratch / "work")
            binds = []
            environ = relocate(environ, {view.mount_path: str(view.host_path) for view in views})
        spec = {
            "mode": self.isolation.mode,
            "parent_pid": os.getpid(),
            "cwd": cwd,
            "hostname": isolation.HOSTNAME,
            "scratch": str(scratch / "root"),
            "binds": binds,
            "foreign_path": list(interpreter.foreign),
            "module": "modal._container_entrypoint",
            "argv": [],
        }
        (scratch / "spec.json").write_text(json.dumps(spec))
        return await self._supervise(task, interpreter, environ, scratch / "spec.json")

    async def _supervise(
        self, task: Task, interpreter: Interpreter, environ: dict[str, str], spec: Path
    ) -> int:
        if task.task_id not in self.server.engine.tasks or task.stop_reason:
            return 0  # stopped before it had begun
        pipes = [os.pipe() for _ in range(2)]
        try:
            task.started_at = self.server.clock.time()
            process = await asyncio.create_subprocess_exec(
                *(interpreter.executable, str(isolation.LAUNCHER), str(spec)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=pipes[0][1],
                stderr=pipes[1][1],
                env=environ,
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            for reading, _ in pipes:
                os.close(reading)
            raise
        finally:
            for _, writing in pipes:
                os.close(writing)
        entry = _Process(task, process)
        for descriptor, (reading, _) in enumerate(pipes, start=1):
            entry.pumps.append(OutputPump(reading, self._logger(task, descriptor)))
        self._processes[task.task_id] = entry
        if task.stop_reason:  # while the process was being made
            process.kill()
        try:
            status = await process.wait()
        finally:
            del self._processes[task.task_id]
            for pump in entry.pumps:
                pump.close()
        # As a shell tells it: the launcher passes on the death of the process inside.
        returncode = 128 - status if status > 128 else status
        log.info("Container %s of %s ended: %s", task.task_id, task.function_name, _how(returncode, task))
        return returncode

    def _logger(self, task: Task, descriptor: int) -> Callable[[str], None]:
        def emit(text: str) -> None:
            if descriptor == api.FILE_DESCRIPTOR_STDERR:
                task.last_words.append(text)
            item = self.server.engine.sole_input(task.task_id)
            self.server.logs.append(
                app_id=task.app_id,
                function_id=task.function_id,
                call_id=item.call.call_id if item else "",
                input_id=item.input_id if item else "",
                task_id=task.task_id,
                descriptor=descriptor,
                text=text,
            )

        return emit

    def _binds(
        self, scratch: Path, root: Path, cwd: str, interpreter: Interpreter, views: Iterable[BoundView]
    ) -> list[dict[str, object]]:
        """Later ones lie on top of earlier ones."""
        binds: list[dict[str, object]] = [
            {"target": "/tmp", "source": str(scratch / "tmp")},
            {"target": "/root", "source": str(scratch / "home")},
            {"target": "/__modal", "source": str(scratch / "modal")},
            *isolation.interpreter_binds(interpreter, scratch / "empty"),
            *isolation.mount_binds(root),
        ]
        if not os.path.isdir(cwd) and not (root / cwd.strip("/")).is_dir():
            binds.append({"target": cwd, "source": str(scratch / "work")})
        for view in views:
            binds.append(
                {"target": view.mount_path, "source": str(view.host_path), "read_only": view.read_only}
            )
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

    async def _interpreter(self, python: str) -> Interpreter:
        if python not in self._interpreters:
            self._interpreters[python] = await isolation.inspect_interpreter(python)
        return self._interpreters[python]


def _how(returncode: int, task: Task) -> str:
    code = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    return f"{code} ({task.stop_reason})" if task.stop_reason else code


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has ended


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    pending = _children(pid)
    while pending:
        child = pending.pop()
        found.append(child)
        try:
            threads = os.listdir(f"/proc/{child}/task")
        except FileNotFoundError:
            continue  # it has ended
        for thread in threads:  # children belong to the thread that forked them
            try:
                text = Path(f"/proc/{child}/task/{thread}/children").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            pending += [int(grandchild) for grandchild in text.split()]
    return found


def _started(pid: int) -> tuple[int, int]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return (2**63, pid)
    return (int(stat.rpartition(")")[2].split()[19]), pid)

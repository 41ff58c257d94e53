"""The lives of containers as processes: how they are started, signalled, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modal_proto import api_pb2 as api

from local_modal import fault_start, isolation, processes
from local_modal.isolation import Isolation
from local_modal.limits import NO_CGROUPS, Limits
from local_modal.model import Task
from local_modal.output import OutputPump
from local_modal.provision import ENTRYPOINT, Provision, Provisioner
from local_modal.volumes.views import remove_tree
from local_modal.zygotes import ContainerProcess, ZygoteError, Zygotes

if TYPE_CHECKING:
    from local_modal.server import Server
    from local_modal.services.functions import Resolved

log = logging.getLogger(__name__)

WAIT_SECONDS = 60.0
"""For containers that have been killed; more than a zygote or a control group that hangs is given."""
LAUNCH_FAILED = -1
"""The exit code of a container whose process couldn't be started."""


@dataclass
class _Process:
    task: Task
    process: ContainerProcess
    pumps: list[OutputPump] = field(default_factory=list)


class Workers:
    """Starts, signals and buries the processes of containers."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.isolation = Isolation(isolation.SHARED, "not examined yet")
        self.limits = Limits(server.state_dir)
        self._dir = server.state_dir / "tasks"
        self._provisioner = Provisioner(server, self._dir)
        self._zygotes = Zygotes(ENTRYPOINT) if server.options.zygote else None
        self._processes: dict[str, _Process] = {}
        self._launching: set[str] = set()

    async def start(self) -> None:
        """Find out what isolation is possible; remove what containers of a former server left.

        Raises:
            OSError, ValueError: the configured interpreter doesn't work, or isolation is required and
                something of it can't be had.
        """
        python = self.server.options.python
        interpreter = await self._provisioner.interpreter(python)
        self.isolation = await isolation.detect(python, self.server.options.fresh_monotonic)
        without_cgroups = os.environ.get(NO_CGROUPS, "") not in ("", "0")
        await asyncio.to_thread(self.limits.start, not without_cgroups)
        if self.server.options.require_isolation and (missing := self.missing()):
            raise isolation.NotIsolated(missing)
        # What can't be removed all the same, such as another user's files, is only in the way.
        await asyncio.to_thread(remove_tree, self._dir)
        self._dir.mkdir(exist_ok=True)
        if self._zygotes is not None:
            self._zygotes.ensure(interpreter)

    async def stop(self) -> None:
        """Remove what the containers, which have ended, needed."""
        if self._zygotes is not None:
            await self._zygotes.stop()
        await asyncio.to_thread(self.limits.stop)

    def missing(self) -> list[str]:
        """What of the isolation and the limits of containers can't be had here, a phrase each."""
        return [*self.isolation.missing(), *self.limits.missing()]

    async def wait_all(self) -> None:
        """Return when no container is left and everything of it is cleared away, or after `WAIT_SECONDS`, so
        that whatever hangs doesn't keep the server from ending.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while self._launching:
            if time.monotonic() > deadline:
                log.warning("Left behind, as they don't end: %s", ", ".join(sorted(self._launching)))
                return
            await asyncio.sleep(0.01)

    # -- for the engine

    async def launch(self, task: Task, resolved: Resolved) -> None:
        """Run a container from its start to its end; the engine hears of the end, whatever happens."""
        self._launching.add(task.task_id)
        returncode = LAUNCH_FAILED
        try:
            await fault_start.before_start(self.server, task)
            provision = await self._provisioner.provide(task, resolved)
            returncode = await self._supervise(task, provision)
        except Exception as error:
            log.exception("Container %s of %s could not be started", task.task_id, task.function_name)
            task.result = task.result or api.GenericResult(
                status=api.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE,
                exception=f"The container could not be started: {error}",
            )
        finally:
            await self._bury(task.task_id, returncode)

    async def _bury(self, task_id: str, returncode: int) -> None:
        """Tell of the end and clear away; whatever fails of it is logged by the loop and keeps nothing else.

        Raises:
            Exception: the last of what went wrong.
        """
        async with contextlib.AsyncExitStack() as steps:  # runs them from the last to the first
            steps.callback(self._launching.discard, task_id)
            steps.push_async_callback(asyncio.to_thread, self.limits.close_container, task_id)
            steps.push_async_callback(asyncio.to_thread, remove_tree, self._dir / task_id)
            steps.push_async_callback(self.server.volumes.close_views, task_id)
            steps.callback(self.server.engine.exited, task_id, returncode)
            steps.callback(self.server.access.dismiss, task_id)

    async def prepare(self, definition: api.Function) -> None:
        """Lay out the files that containers of this function need, so that the first one starts as fast as
        the others.
        """
        await self._provisioner.prepare(definition)

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
        return processes.descendants(entry.process.pid) if entry else []

    def entry_pid(self, task_id: str) -> int | None:
        """The host's pid of the container's own process, the one that runs user code."""
        entry = self._processes.get(task_id)
        if entry is None:
            return None
        isolated = self.isolation.mode == isolation.ISOLATED
        return processes.entry_pid(entry.process.pid, isolated=isolated)

    # -- the life of one container

    async def _supervise(self, task: Task, provision: Provision) -> int:
        if task.task_id not in self.server.engine.tasks or task.stop_reason:
            return 0  # stopped before it had begun
        pipes = [os.pipe() for _ in range(2)]
        try:
            task.started_at = self.server.clock.time()
            self.server.stats.container_started(task.function_id)
            process = await self._start_process(task, provision, pipes[0][1], pipes[1][1])
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
        watch = asyncio.ensure_future(
            provision.limits.watch(lambda: self.pids(task.task_id), lambda: self.kill(task.task_id))
        )
        try:
            status = await process.wait()
        finally:
            watch.cancel()
            del self._processes[task.task_id]
            for pump in entry.pumps:
                pump.close()
        # As a shell tells it: the launcher passes on the death of the process inside.
        returncode = 128 - status if status > 128 else status
        if note := provision.limits.exit_note:
            task.exit_note = note
            self._logger(task, api.FILE_DESCRIPTOR_INFO)(f"Container {note}\n")
        log.info("Container %s of %s ended: %s", task.task_id, task.function_name, _how(returncode, task))
        return returncode

    async def _start_process(
        self, task: Task, provision: Provision, stdout: int, stderr: int
    ) -> ContainerProcess:
        if self._zygotes is not None:
            try:
                return await self._zygotes.fork(
                    provision.interpreter, task.task_id, provision.spec, provision.environ, (stdout, stderr)
                )
            except ZygoteError as error:
                log.debug("Container %s gets an interpreter of its own: %s", task.task_id, error)
        return await asyncio.create_subprocess_exec(
            *(provision.interpreter.executable, str(isolation.LAUNCHER), str(provision.spec_path)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=provision.environ,
            cwd="/",
            start_new_session=True,
        )

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


def _how(returncode: int, task: Task) -> str:
    code = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    reasons = [reason for reason in (task.stop_reason, task.exit_note) if reason]
    return f"{code} ({'; '.join(reasons)})" if reasons else code

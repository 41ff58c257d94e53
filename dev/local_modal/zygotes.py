"""The server's side of zygotes: one per interpreter, asked for containers. See zygote.py for the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Protocol

from local_modal.environ import interpreter_environ
from local_modal.isolation import Interpreter
from local_modal.output import OutputPump
from local_modal.zygote import LENGTH_BYTES

log = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("zygote.py")
READY_SECONDS = 60.0
STOP_SECONDS = 5.0
FORK_SECONDS = 10.0
"""A zygote that takes longer for its answer, which is ready in milliseconds, hangs and is killed."""
READ_BYTES = 65536
RENEW_AFTER = 10
"""Containers of one zygote: all of them have its hash seed, and user code that depends on the order of a set
should be found out here, not in the cloud.
"""


class ZygoteError(Exception):
    """The interpreter's zygote can't make containers; the message says why."""


class ContainerProcess(Protocol):
    """The first process of a container, however it was started."""

    @property
    def pid(self) -> int:
        """The host's pid."""

    def kill(self) -> None:
        """SIGKILL.

        Raises:
            ProcessLookupError: it has ended.
        """

    async def wait(self) -> int:
        """Its exit code, negative for a signal."""


class ForkedProcess:
    """A container that a zygote has forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        # The zygote may have reaped it a moment ago; pids aren't used again as fast as that.
        if not self.ended.done():
            os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Its exit code, negative for a signal; also that if the zygote died, which it doesn't survive."""
        return await asyncio.shield(self.ended)


class Zygotes:
    """Starts a zygote per interpreter when it is first needed."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._zygotes: dict[str, asyncio.Task[_Zygote]] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def fork(
        self,
        interpreter: Interpreter,
        task_id: str,
        spec: dict[str, Any],
        environ: Mapping[str, str],
        outputs: tuple[int, int],
    ) -> ForkedProcess:
        """A new container whose stdout and stderr are `outputs`, which stay the caller's to close.

        Raises:
            ZygoteError: there is no working zygote; nothing was started.
        """
        starting = self.ensure(interpreter)
        zygote = await asyncio.shield(starting)
        if zygote.broken:
            # Unless another container has found that out, too, and a successor is there.
            if self._zygotes.get(interpreter.executable) is starting:
                del self._zygotes[interpreter.executable]
                self._in_background(zygote.stop())
            zygote = await asyncio.shield(self.ensure(interpreter))
        process = await zygote.fork(task_id, spec, environ, outputs)
        if zygote.forks == RENEW_AFTER:
            self._in_background(self._renew(interpreter, zygote))
        return process

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _renew(self, interpreter: Interpreter, old: _Zygote) -> None:
        """Put a successor in the place of a zygote, which stays until its containers have ended."""
        starting = asyncio.ensure_future(_Zygote.start(interpreter, self._module))
        try:
            await asyncio.wait([starting])
            if starting.exception() is not None:
                log.warning("A zygote could not be renewed and goes on: %s", starting.exception())
                return
            self._zygotes[interpreter.executable] = starting
            await old.unused()
            await old.stop()
        except asyncio.CancelledError:
            # The server stops, with whatever was there.
            for zygote in [old, *await asyncio.gather(starting, return_exceptions=True)]:
                if isinstance(zygote, _Zygote):
                    await zygote.stop()
            raise

    def ensure(self, interpreter: Interpreter) -> asyncio.Task[_Zygote]:
        """The interpreter's zygote, which may still be importing; one that failed to start isn't tried
        again.
        """
        if interpreter.executable not in self._zygotes:
            starting = asyncio.ensure_future(_Zygote.start(interpreter, self._module))
            starting.add_done_callback(_report)
            self._zygotes[interpreter.executable] = starting
        return self._zygotes[interpreter.executable]

    async def stop(self) -> None:
        """End all zygotes, and with them the containers that are left."""
        background = list(self._background)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        starting = list(self._zygotes.values())
        self._zygotes.clear()
        for zygote in await asyncio.gather(*starting, return_exceptions=True):
            if isinstance(zygote, _Zygote):
                await zygote.stop()


def _report(starting: asyncio.Task[_Zygote]) -> None:
    if not starting.cancelled() and starting.exception() is not None:
        log.warning("Containers start without a zygote: %s", starting.exception())


def _set(ended: asyncio.Future[int], status: int) -> None:
    if not ended.done():
        ended.set_result(status)


class _Zygote:
    """One zygote process and the connection to it."""

    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket) -> None:
        self._process = process
        self._connection = connection
        self._sending = asyncio.Lock()
        self._received = b""
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requested: dict[str, asyncio.Future[ForkedProcess]] = {}
        self._running: dict[int, ForkedProcess] = {}
        self._errors: OutputPump | None = None
        self._idle = asyncio.Event()
        self.broken = False
        self.forks = 0

    @classmethod
    async def start(cls, interpreter: Interpreter, module: str) -> _Zygote:
        """Start one and wait until it can fork.

        Raises:
            ZygoteError: it can't.
        """
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(interpreter.executable, str(PROGRAM), str(theirs.fileno()), str(os.getpid()), module),
                json.dumps(interpreter.foreign),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=writing,
                env=interpreter_environ(interpreter),
                cwd="/",
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )
        except OSError as error:
            ours.close()
            os.close(reading)
            raise ZygoteError(f"{interpreter.executable}: {error}") from None
        finally:
            theirs.close()
            os.close(writing)
        zygote = cls(process, ours)
        said: list[str] = []

        def hear(text: str) -> None:
            said.append(text)
            log.debug("Zygote of %s: %s", interpreter.executable, text.rstrip())

        zygote._errors = OutputPump(reading, hear)
        asyncio.get_running_loop().add_reader(ours, zygote._read)
        try:
            await asyncio.wait_for(asyncio.shield(zygote._ready), READY_SECONDS)
        except (ZygoteError, asyncio.TimeoutError):
            zygote._errors.drain()
            await zygote.stop()
            words = "".join(said).strip().splitlines()
            raise ZygoteError(f"{interpreter.executable}: {words[-1] if words else 'no answer'}") from None
        return zygote

    async def fork(
        self, task_id: str, spec: dict[str, Any], environ: Mapping[str, str], outputs: tuple[int, int]
    ) -> ForkedProcess:
        if self.broken:
            raise ZygoteError("the zygote has ended")
        body = json.dumps({"id": task_id, "spec": spec, "environ": dict(environ)}).encode()
        answer: asyncio.Future[ForkedProcess] = asyncio.get_running_loop().create_future()
        self._requested[task_id] = answer
        self._idle.clear()
        # Killing it ends every wait below: sending fails, and the answer is set.
        patience = asyncio.get_running_loop().call_later(FORK_SECONDS, self._hangs)
        try:
            async with self._sending:
                await asyncio.to_thread(self._send, body, outputs)
            self.forks += 1
            return await answer
        except OSError as error:
            self._requested.pop(task_id, None)
            if not answer.cancel():
                answer.exception()  # known; asyncio would complain that nobody has asked
            self._settle()
            raise ZygoteError(f"the zygote doesn't listen: {error}") from None
        finally:
            patience.cancel()

    def _hangs(self) -> None:
        log.warning(
            "A zygote that hasn't answered for %.0f s is killed, and its containers are", FORK_SECONDS
        )
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._lost()

    async def unused(self) -> None:
        """Return when it has no container, running or asked for."""
        self._settle()
        await self._idle.wait()

    def _settle(self) -> None:
        if not self._requested and not self._running:
            self._idle.set()

    def _send(self, body: bytes, outputs: tuple[int, int]) -> None:
        socket.send_fds(self._connection, [len(body).to_bytes(LENGTH_BYTES, "big")], list(outputs))
        self._connection.sendall(body)

    def _read(self) -> None:
        try:
            data = self._connection.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._lost()
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._heard(json.loads(line))

    def _heard(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self._ready.set_result(None)
        elif "error" in message:
            answer = self._requested.pop(message["id"])
            if not answer.done():
                answer.set_exception(ZygoteError(message["error"]))
        elif "id" in message:
            process = ForkedProcess(message["pid"])
            self._running[process.pid] = process
            answer = self._requested.pop(message["id"])
            if answer.done():  # whoever asked was cancelled: nobody would ever end it
                process.kill()
            else:
                answer.set_result(process)
        else:
            _set(self._running.pop(message["pid"]).ended, message["status"])
        self._settle()

    def _lost(self) -> None:
        """The zygote is gone, and its containers are with it."""
        if self.broken:
            return
        self.broken = True
        asyncio.get_running_loop().remove_reader(self._connection)
        gone = ZygoteError("the zygote has ended")
        for answer in self._requested.values():
            if not answer.done():
                answer.set_exception(gone)
        if not self._ready.done():
            self._ready.set_exception(gone)
        for process in self._running.values():
            _set(process.ended, -signal.SIGKILL)
        self._requested.clear()
        self._running.clear()
        self._settle()

    async def stop(self) -> None:
        """End it, and with it what it has forked."""
        self._lost()
        self._connection.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._errors is not None:
            self._errors.close()

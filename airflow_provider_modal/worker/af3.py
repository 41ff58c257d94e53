"""How does Airflow 3 run one task here? Under its own supervisor, against its execution API in this process.

``warm_up`` runs once in the zygote: it imports what a task needs, builds the API and sends it one request,
which is where Airflow spends its first seconds. ``supervise`` runs in a child of the zygote: the child is the
supervisor, and forks the process that runs user code. SIGTERM to the child reaches that process, so that the
operator's ``on_kill`` runs.

Private names of Airflow that this relies on: ``InProcessExecutionAPI`` (``app``, ``transport``),
``supervise_task`` (``supervise`` before 3.3) with ``client=``, the route ``task-instances/{id}/run``;
``ActivitySubprocess._register_pipe_readers`` and ``selector`` for the shorter tail, if they are there.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import json
import logging
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from uuid import UUID

import httpx

from airflow_provider_modal.bundles import dag_modules
from airflow_provider_modal.container.execution_api import (
    IN_PROCESS_URL,
    in_process_client,
    leave_out_old_versions,
)
from airflow_provider_modal.container.processes import signal_name
from airflow_provider_modal.venvs import activation, operator_cache
from airflow_provider_modal.wire import Outcome

log = logging.getLogger(__name__)

PRELOADED = (
    "airflow.executors.workloads",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.sdk.bases.hook",
    "airflow.sdk.definitions.connection",
    "airflow.sdk.definitions.decorators",
    "airflow.sdk.definitions.decorators.setup_teardown",
    "airflow.sdk.definitions.decorators.task_group",
    "airflow.sdk.definitions.asset.metadata",
    "airflow.sdk._shared.logging.remote",
    "airflow.dag_processing.bundles.manager",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.standard.operators.bash",
    "airflow.providers.standard.operators.empty",
    "airflow.providers.standard.operators.python",
    "airflow_provider_modal.bundles.volume",
    "airflow_provider_modal.container.identity",
    "a2wsgi",
    "jinja2.ext",
    "setproctitle",
)
"""What nearly every task would import itself, a third of a second together; what is missing is skipped."""

PROCESS_CONTEXT = "_AIRFLOW_PROCESS_CONTEXT"
"""Tells Airflow's secrets lookup whether it may ask the database."""


def warm_up() -> None:
    """Import what tasks need, build the execution API and exercise it; leave no thread and no connection."""
    from airflow import settings

    configure_logging()
    for module in PRELOADED:
        try:
            importlib.import_module(module)
        except ImportError as error:
            log.info("%s is not imported in advance: %s", module, error)
    operator_cache.keep_caches()
    started = time.monotonic()
    leave_out_old_versions()
    try:
        with _silent():
            answer = asyncio.run(_first_request())
        if answer.status_code != httpx.codes.NOT_FOUND:
            log.warning("the execution API answered %d while warming up: %s", answer.status_code, answer.text)
    except Exception:
        # A database that is away now may be there for the first task, which tells of it if not.
        log.warning("the execution API could not be warmed up; the first task takes longer", exc_info=True)
    log.info("execution API warmed up in %.1f s", time.monotonic() - started)
    if settings.engine is not None:
        settings.engine.dispose()
    _await_single_thread()


def configure_logging() -> None:
    """Have what this process prints of tasks' logs masked as the logs themselves are.

    To be called before anything logs: loggers keep the processors that they find at their first use, and
    without this they are those of ``airflow.settings``, which mask nothing.
    """
    try:
        from airflow.sdk.log import configure_logging
    except ImportError as error:
        log.warning(
            "this Airflow's logging is unknown (%s): output of tasks may hold secrets in clear", error
        )
        return
    configure_logging(output=sys.stdout.buffer, colored_console_log=False)


def supervise(workload: str, lost_container: str | None = None) -> dict[str, Any]:
    """Run one task under Airflow's supervisor.

    :param workload: ``ExecuteTask`` as JSON.
    :param lost_container: host name under which an earlier delivery of this dispatch started the task and
        died; its task instance is queued again first.
    :return: ``{"outcome", "reason", "exit_code"}`` with the outcomes of ``wire.Completion``, and ``"state"``:
        what the task told Airflow at its end, if it did.
    """
    from airflow.executors.workloads import ExecuteTask
    from airflow.sdk.execution_time import supervisor

    task = ExecuteTask.model_validate_json(workload)
    become_supervisor()
    dag_modules.use_current()
    shorten_tail(supervisor.ActivitySubprocess)
    transport = LazyTransport()
    try:
        if lost_container is not None:
            _queue_again(task.ti.id, lost_container)
        exit_code = _supervise_task()(
            ti=task.ti,
            bundle_info=task.bundle_info,
            dag_rel_path=task.dag_rel_path,
            token="",
            client=in_process_client(transport),
            log_path=task.log_path,
            # Modal's own log of the call has the task's lines, too, as a local executor's output does.
            **accepted(
                _supervise_task(),
                subprocess_logs_to_stdout=True,
                sentry_integration=getattr(task, "sentry_integration", ""),
            ),
        )
    except Exception as error:
        if transport.start_refused is not None:
            return ended("obsolete", f"Airflow refused to start this copy: {transport.start_refused}")
        log.exception("Airflow's supervisor failed")
        cause = f"{type(error).__name__}: {error}"
        if not transport.started:
            # Should Airflow have noted the start all the same, the executor finds the task running there.
            return ended("not_started", f"Airflow's supervisor could not start the task: {cause}")
        return ended("failed", f"Airflow's supervisor failed while the task ran: {cause}")
    if transport.taken_back is not None:
        # Its state in the database is somebody's decision; "failed" would overrule it, and a task that was
        # cleared while it ran would not be run again.
        return ended("done", f"Airflow took the running task back: {transport.taken_back}", exit_code)
    if exit_code != 0:
        # Airflow's own word on this is only a log line; with retries left it does not even write the state.
        return ended("failed", f"{_death(exit_code)} before it could tell Airflow how it ended", exit_code)
    return {**ended("done", None, exit_code), "state": transport.state}


def become_supervisor() -> None:
    """Make this process one that Airflow trusts, and those that it forks ones that run user code.

    :raises ModalflowError: that code asks for packages which can't be had any more.
    """
    os.environ[PROCESS_CONTEXT] = "server"
    activation.in_forks()
    # A client looks up connections and variables as such.
    os.register_at_fork(after_in_child=lambda: os.environ.update({PROCESS_CONTEXT: "client"}))


def _death(exit_code: int) -> str:
    if exit_code >= 0:
        return f"the task's process exited with code {exit_code}"
    return f"the task's process was killed by signal {-exit_code} ({signal_name(-exit_code)})"


def ended(outcome: Outcome, reason: str | None, exit_code: int | None = None) -> dict[str, Any]:
    """Return what a child tells the worker: how its supervised process ended."""
    return {"outcome": outcome, "reason": reason, "exit_code": None if exit_code is None else int(exit_code)}


@cache
def api() -> Any:
    """Return this process's execution API."""
    from airflow.api_fastapi.execution_api.app import InProcessExecutionAPI

    return InProcessExecutionAPI()


async def _first_request() -> httpx.Response:
    """Ask to start a task instance that doesn't exist: the first request of every task, answered 404."""
    import svcs
    from airflow.sdk.api.client import API_VERSION

    app = api().app
    # Its start-up event would set this; but shutting down afterwards would empty what each child needs.
    app.state.svcs_registry = svcs.Registry()
    try:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=IN_PROCESS_URL) as client:
            return await client.patch(
                f"task-instances/{UUID(int=0)}/run",
                headers={"airflow-api-version": API_VERSION},
                json={
                    "state": "running",
                    "hostname": "warm-up",
                    "unixname": "warm-up",
                    "pid": 1,
                    "start_date": "2000-01-01T00:00:00Z",
                },
            )
    finally:
        del app.state.svcs_registry


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep Airflow's "Task Instance not found" out of the container's output; it would alarm people."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for copy, descriptor in zip(saved, (1, 2), strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)


def _await_single_thread(timeout: float = 5.0) -> None:
    """Wait for the API's worker threads, which end a moment after their event loop; the zygote checks."""
    ends = time.monotonic() + timeout
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < ends:
        time.sleep(0.01)


_REFUSALS = (httpx.codes.NOT_FOUND, httpx.codes.CONFLICT, httpx.codes.GONE)
"""What the execution API answers about a task instance that this copy may not run, or no longer."""


class LazyTransport(httpx.BaseTransport):
    """Airflow's in-process transport, made with the first request, and what Airflow said of this copy.

    Made any earlier, its threads would run in the process that forks the task.
    """

    def __init__(self) -> None:
        self._transport: httpx.BaseTransport | None = None
        self.started = False
        """The database says that this copy of the task runs."""
        self.start_refused: str | None = None
        """Why another copy counts, or none does."""
        self.taken_back: str | None = None
        """Why the task, which was running, must not run any more: somebody cleared or marked it."""
        self.state: str | None = None
        """What the task has become, as the database has it."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Have a request answered, and note what the answer says about this copy."""
        if self._transport is None:
            self._transport = api().transport
        response = self._transport.handle_request(request)
        if request.url.path.endswith("/run") and not self.started:
            response.read()
            self._note_start(response)
        elif request.url.path.endswith("/state") and request.method == "PATCH" and response.is_success:
            self.state = json.loads(request.content).get("state")
        elif request.url.path.endswith("/heartbeat") and response.status_code in _REFUSALS:
            response.read()
            self.taken_back = _detail(response)
        return response

    def _note_start(self, response: httpx.Response) -> None:
        if response.is_success:
            self.started = True
        elif response.status_code in _REFUSALS:
            self.start_refused = _detail(response)


def _detail(response: httpx.Response) -> str:
    try:
        detail = json.loads(response.text)["detail"]
        # The one where a start is refused, the other where a heartbeat is.
        state = detail.get("previous_state") or detail.get("current_state")
        return detail["message"] + (f" (its state is {state})" if state else "")
    except (ValueError, KeyError, TypeError):
        return response.text


def _supervise_task() -> Callable[..., int]:
    from airflow.sdk.execution_time import supervisor

    found: Callable[..., int] = getattr(supervisor, "supervise_task", supervisor.supervise)
    return found


def accepted(function: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Return those of the arguments that this Airflow's function knows."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in known}


def _queue_again(ti_id: UUID, lost_container: str) -> None:
    """Take a task instance back from a container that is known to be lost, and from no other."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import update

    with create_session() as session:
        session.execute(
            update(TaskInstance)
            .where(
                TaskInstance.id == ti_id,
                TaskInstance.state == "running",
                TaskInstance.hostname == lost_container,
            )
            .values(state="queued")
        )


class _ExitOf:
    """A child process's end as something that a selector can wait for.

    A pidfd would be one, but gVisor, in which Modal runs containers, does not have them everywhere.
    """

    def __init__(self, pid: int) -> None:
        self._read, self._write = os.pipe()
        threading.Thread(target=self._wait, args=(pid,), name="task-end", daemon=True).start()

    def _wait(self, pid: int) -> None:
        # A signal that this thread took would not wake the main thread, which has the handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pass  # the supervisor was quicker
        os.close(self._write)

    def fileno(self) -> int:
        return self._read

    def close(self) -> None:
        os.close(self._read)


def shorten_tail(subprocess: Any) -> None:
    """Have a supervisor notice at once that the process of user code has ended.

    It watches the process's sockets, and when the last one closes a moment before the process can be waited
    for, it sleeps a whole heartbeat interval (5 s) before it looks again.
    """
    original = getattr(subprocess, "_register_pipe_readers", None)
    if original is None:
        log.warning("this Airflow's supervisor is unknown: each task ends up to 5 s late")
        return

    def register(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        try:
            # What the supervisor expects in "data": a reader that says whether to go on, and its clean-up.
            data = (lambda _exit: False, self.selector.unregister)
            self.selector.register(_ExitOf(self.pid), selectors.EVENT_READ, data)
        except (AttributeError, OSError, RuntimeError) as error:
            log.warning("the task's process can't be waited for (%s): it may end up to 5 s late", error)
        return result

    subprocess._register_pipe_readers = register

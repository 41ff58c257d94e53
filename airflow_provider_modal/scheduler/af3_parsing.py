"""Airflow 3's own DAG file processing, as one bounded pass: everything that depends on its class is here.

The stock manager is made to run for ever. A single pass of it forgets callbacks, leaves no trace of a file
that had to be killed or that killed its process, parses every file because it has just started, and depends
on how long the machine is up. ``BoundedManager`` changes exactly that.

Private names of Airflow that this rests on (3.3.2): the overridden methods, ``_file_stats``, ``_file_queue``,
``_processors``, ``_callback_to_execute``, ``_dag_bundles``, ``_file_parsing_sort_mode``; of a file's process
``_exit_code``, ``_open_sockets`` and ``_check_subprocess_exit``.
"""

from __future__ import annotations

import functools
import logging
import os
import selectors
import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from airflow.dag_processing.manager import DagFileInfo, DagFileProcessorManager, DagFileStat
from airflow.dag_processing.processor import DagFileParsingResult, DagFileProcessorProcess
from airflow.models.dag import DagModel
from airflow.models.db_callback_request import DbCallbackRequest
from airflow.models.errors import ParseImportError
from airflow.utils.session import create_session
from sqlalchemy import func, select

from airflow_provider_modal.config import SchedulerConfig
from airflow_provider_modal.container import processes
from airflow_provider_modal.container.execution_api import in_process_client
from airflow_provider_modal.scheduler.parse_memory import MemoryLimits
from airflow_provider_modal.scheduler.parse_venvs import Prepared, VenvsOfFiles
from airflow_provider_modal.scheduler.parsing import (
    CALLBACK_SECONDS,
    Limits,
    death_error,
    shortened,
    timeout_error,
)

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_CALLBACK_PRIORITY = 1
_KILLED_SECONDS = 5.0


def parse(
    digest: str,
    unchanged: list[str],
    per_file: float,
    phase: float,
    venvs: Mapping[str, Prepared] | None = None,
    memory: int = SchedulerConfig.parse_memory,
) -> dict[str, Any]:
    """Parse what needs it of the current DAG version, once.

    :param digest: the DAG version, which is materialised on local disk.
    :param unchanged: files that are the same as in the version of which all files were parsed last.
    :param per_file: seconds that one file may take.
    :param phase: seconds after which no further file is begun.
    :param venvs: what ``parse_venvs.prepare`` got ready.
    :param memory: MiB that one file may take; 0 for no limit.
    :return: ``files`` parsed, ``errors`` among them, ``left`` for the next run, ``seconds``.
    """
    started = time.monotonic()
    # Children that a parsed file leaves behind become ours, and end with the pass.
    processes.adopt_orphans()
    limits = Limits(per_file, phase, memory)
    memory_limits = MemoryLimits(memory)
    memory_limits.apply()
    # Airflow's own, gentler limit: it interrupts a file and tells where it was.
    os.environ["AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT"] = f"{per_file:g}"
    manager = BoundedManager(
        digest=digest,
        unchanged=frozenset(unchanged),
        limits=limits,
        memory_limits=memory_limits,
        venvs=VenvsOfFiles(venvs or {}),
    )
    manager.run()
    manager.finish()
    return {**manager.summary(), "seconds": round(time.monotonic() - started, 3)}


class _ClientOnDemand:
    """Airflow's client for children that ask for variables or connections, made when the first one asks.

    It comes with a whole web application, and with a thread in the process that forks.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    @functools.cached_property
    def _client(self) -> Any:
        return self._make()


class BoundedManager(DagFileProcessorManager):
    """Parses each new, changed or expired file once; what it could not begin is left for the next pass.

    :param digest: the DAG version.
    :param unchanged: see :func:`parse`.
    :param venvs: packages that the image lacks.
    """

    _file_queue: OrderedDict[DagFileInfo, None]

    def __init__(
        self,
        *,
        digest: str,
        unchanged: frozenset[str],
        limits: Limits,
        memory_limits: MemoryLimits,
        venvs: VenvsOfFiles,
    ) -> None:
        super().__init__(max_runs=1, processor_timeout=limits.kill_after, stale_dag_threshold=0)
        self._digest = digest
        self._unchanged = unchanged
        self._limits = limits
        self._venvs = venvs
        self._memory_limits = memory_limits
        # Whether a file changed is known from its content: its time on local disk is that of a download.
        self._file_parsing_sort_mode = "alphabetical"
        self._ends = 0.0
        self._looked_for_expired = False
        self._cut_short = False
        self._left = 0
        self._parsed: dict[DagFileInfo, int] = {}
        """Number of import errors of each parsed file."""
        self._stored: set[str] = set()
        self._failed_before: set[str] = set()
        self._had_dags = False
        self._versions_before: dict[str, str | None] = {}
        self._refreshed: dict[str, dict[str, Any]] = {}
        self._answers: _ClientOnDemand | None = None

    def summary(self) -> dict[str, Any]:
        """Return what the pass did, for the log."""
        return {
            "files": len(self._parsed),
            "errors": sum(1 for errors in self._parsed.values() if errors),
            "left": self._left,
        }

    # The pass and its end.

    def register_exit_signals(self) -> None:
        """Keep the process's own handlers: SIGTERM ends it, and its children with it."""

    def prepare_bundles(self) -> None:
        """Load the bundles, and what earlier passes have done."""
        super().prepare_bundles()
        self._ends = time.monotonic() + self._limits.phase
        for bundle in self._dag_bundles:
            self._remember(bundle.name)

    def prepare_file_queue(self, known_files: dict[str, set[DagFileInfo]]) -> None:
        """Queue files that are due again although nobody touched them."""
        if self._cut_short:
            return
        super().prepare_file_queue(known_files)
        self._looked_for_expired = True

    def max_runs_reached(self) -> bool:
        """Return whether the pass is over: nothing is queued, runs or waits to be called back."""
        for file in list(self._callback_to_execute):
            # The stock manager drops the queue entry of a file that is being parsed, and keeps its callback.
            if file not in self._file_queue and file not in self._processors:
                self._add_files_to_queue([file], mode="front")
        # However slow the machine is: each pass begins something, and one that ends late is complete.
        begun = self._parsed or self._processors
        if self._file_queue and begun and time.monotonic() >= self._ends and not self._cut_short:
            self._cut_short = True
            self._left = len(self._file_queue)
            log.warning("parsing is cut short after %g s: %d files are left", self._limits.phase, self._left)
        if self._cut_short:
            self._file_queue.clear()
        return not self._file_queue and not self._processors and (self._cut_short or self._looked_for_expired)

    def finish(self) -> None:
        """Store what must be known after the pass: callbacks that are left, vanished DAGs, the version."""
        self._return_callbacks()
        clean = {
            file: self._file_stats[file].last_finish_time
            for file, errors in self._parsed.items()
            if not errors and str(file.rel_path) in self._stored
        }
        if clean:
            self.deactivate_stale_dags(last_parsed=clean)
        if not self._cut_short:
            for bundle_name, state in self._refreshed.items():
                super().update_bundle_state(bundle_name, **state)
        processes.kill_family(os.getpid())

    def fetch_callbacks(self) -> list[Any]:
        """Take callbacks from the database, as long as there is time to run them."""
        return [] if self._cut_short else super().fetch_callbacks()

    def _return_callbacks(self) -> None:
        with create_session() as session:
            for requests in self._callback_to_execute.values():
                for request in requests:
                    session.add(DbCallbackRequest(priority_weight=_CALLBACK_PRIORITY, callback=request))
        self._callback_to_execute.clear()

    # What need not be parsed.

    def _remember(self, bundle_name: str) -> None:
        """Tell the manager when files were parsed, so that it parses only what is new, changed or expired.

        A file counts as parsed if it is the same as in the last version that was parsed as a whole, or if its
        DAGs carry the current version: the mark of a pass that was cut short.
        """
        state = self.get_bundle_state(bundle_name)
        if state is None:
            return
        self._versions_before[bundle_name] = state.version
        parsed: dict[str, datetime | None] = dict.fromkeys(self._unchanged, state.last_refreshed)
        with create_session() as session:
            errors = session.execute(
                select(ParseImportError.filename, func.max(ParseImportError.timestamp))
                .where(ParseImportError.bundle_name == bundle_name)
                .group_by(ParseImportError.filename)
            )
            for file, at in errors:
                self._failed_before.add(file)
                if file in parsed:
                    parsed[file] = at
            dags = session.execute(
                select(
                    DagModel.relative_fileloc,
                    func.max(DagModel.last_parsed_time),
                    func.bool_and(DagModel.bundle_version == self._digest),
                )
                .where(DagModel.bundle_name == bundle_name, ~DagModel.is_stale)
                .group_by(DagModel.relative_fileloc)
            )
            for file, at, current in dags:
                self._had_dags = True
                if file is not None and (file in parsed or current):
                    parsed[file] = at
        for file, at in parsed.items():
            info = DagFileInfo(rel_path=Path(file), bundle_name=bundle_name)
            self._file_stats[info] = DagFileStat(last_finish_time=at)

    def _add_new_files_to_queue(self, known_files: dict[str, set[DagFileInfo]]) -> None:
        """Queue new and changed files, those that failed before last: a pass may not come to all of them."""
        super()._add_new_files_to_queue(known_files)
        ordered = sorted(self._file_queue, key=lambda file: str(file.rel_path) in self._failed_before)
        self._file_queue = OrderedDict.fromkeys(ordered)

    def update_bundle_state(self, bundle_name: str, **state: Any) -> None:
        """Keep the version back until every file of it was parsed: it is what the next run compares with."""
        self._refreshed[bundle_name] = state

    # What disappeared.

    def deactivate_deleted_dags(self, bundle_name: str, present: set[DagFileInfo]) -> None:
        """Deactivate DAGs whose file is gone, but all of them only when a second run finds no file either."""
        if not present and self._versions_before.get(bundle_name) != self._digest:
            if self._had_dags:
                log.warning(
                    "there is no DAG file any more; DAGs stay active until the next run finds the same"
                )
            return
        super().deactivate_deleted_dags(bundle_name, present)

    def _scan_stale_dags(self) -> None:
        """Nothing during the pass: see ``finish``."""

    # The files' processes, and those that fail.

    def _create_process(self, file: DagFileInfo) -> DagFileProcessorProcess:
        callbacks = file in self._callback_to_execute
        with self._venvs.used_for(str(file.rel_path)), self._memory_limits.forking(callbacks=callbacks):
            process: DagFileProcessorProcess = super()._create_process(file)
        return process

    def _service_processor_sockets(self, timeout: float | None = 1.0) -> None:
        """Hear children, not waiting so long that a limit is noticed late; what one says harms no other."""
        ends = time.monotonic() + _POLL_SECONDS
        events = self.selector.select(_POLL_SECONDS if timeout is None else min(timeout, _POLL_SECONDS))
        while events:
            for key, _ in events:
                self._hear(key)
            # Airflow's loop asks the database each time, which is long for a few kilobytes.
            events = self.selector.select(0) if time.monotonic() < ends else []

    @staticmethod
    def _hear(key: selectors.SelectorKey) -> bool:
        """Take what a socket has for us, and return whether it may have more."""
        handle, on_close = key.data
        connection: Any = key.fileobj
        try:
            goes_on = handle(connection)
        except (BrokenPipeError, ConnectionResetError):
            goes_on = False
        except Exception as error:
            # User code has its hands on the same file descriptors.
            log.warning("what a file's process sent can't be read: %s: %s", type(error).__name__, error)
            goes_on = False
        if not goes_on:
            on_close(connection)
            connection.close()
        return bool(goes_on)

    def _kill_timed_out_processors(self) -> None:
        """Kill what exceeds its limit, with all its children, and leave an import error."""
        now = time.monotonic()
        for file, process in list(self._processors.items()):
            limit = CALLBACK_SECONDS if process.had_callbacks else self._limits.kill_after
            if now - process.start_time <= limit:
                continue
            # What it has sent counts, although a busy machine did not let us read it in time.
            self._drain(process)
            hangs = process._exit_code is None
            self._end(process)
            if process.had_callbacks:
                log.error("callbacks of %s took longer than %g s and were ended", file.rel_path, limit)
            elif hangs and process.parsing_result is None:
                text = timeout_error(str(file.rel_path), self._limits.per_file)
                process.parsing_result = _failure(file, text)
            self.handle_parsing_result(file, process)
            self._processors.pop(file).close()

    def _drain(self, process: DagFileProcessorProcess) -> None:
        ends = time.monotonic() + _POLL_SECONDS
        own = [key for key in self.selector.get_map().values() if key.fileobj in process._open_sockets]
        with selectors.DefaultSelector() as sockets:
            for key in own:
                sockets.register(key.fileobj, selectors.EVENT_READ, key)
            while time.monotonic() < ends and (events := sockets.select(0)):
                for event, _ in events:
                    if not self._hear(event.data):
                        sockets.unregister(event.fileobj)

    @staticmethod
    def _end(process: DagFileProcessorProcess) -> None:
        """Kill a process and its family; Airflow's own way listens to all children meanwhile, unprotected."""
        for member in processes.family(process.pid):
            processes.send_signal(member.pid, signal.SIGKILL)
        patience = time.monotonic() + _KILLED_SECONDS
        while process._check_subprocess_exit(expect_signal=signal.SIGKILL) is None:
            if time.monotonic() >= patience:
                log.error("pid %d was killed and has not ended in %g s", process.pid, _KILLED_SECONDS)
                return
            time.sleep(0.01)

    def handle_parsing_result(self, file: DagFileInfo, proc: DagFileProcessorProcess, **kwargs: Any) -> None:
        """Store a result; a process that ended without one leaves an import error."""
        if proc.parsing_result is None and not proc.had_callbacks:
            proc.parsing_result = _failure(file, death_error(str(file.rel_path), proc._exit_code))
        if proc.parsing_result is not None and proc.parsing_result.import_errors:
            errors = proc.parsing_result.import_errors
            proc.parsing_result.import_errors = {
                name: self._venvs.explained(str(file.rel_path), self._limits.explained(shortened(text)))
                for name, text in errors.items()
            }
        super().handle_parsing_result(file, proc, **kwargs)
        if proc.parsing_result is not None:
            self._parsed[file] = len(proc.parsing_result.import_errors or {})

    def persist_parsing_result(self, **kwargs: Any) -> None:
        """Store a result, and remember that this worked."""
        super().persist_parsing_result(**kwargs)
        self._stored.add(kwargs["relative_fileloc"])

    @property
    def client(self) -> Any:
        """What children are answered with."""
        if self._answers is None:
            self._answers = _ClientOnDemand(lambda: in_process_client(self._api_server.transport))
        return self._answers


def _failure(file: DagFileInfo, text: str) -> DagFileParsingResult:
    return DagFileParsingResult(
        fileloc=str(file.absolute_path), serialized_dags=[], import_errors={str(file.rel_path): text}
    )

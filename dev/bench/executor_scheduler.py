"""A scheduler's thread around a real ModalExecutor: what do heartbeats take, and how many RPCs are made?"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg2
from psycopg2.extras import execute_values

from bench.executor import serve
from bench.figures import Figure
from local_modal.testing import LocalModal

ENV = "bench"
CONTAINERS = 8
SPAWNS = 500
PAUSE = 0.05
"""Seconds between two heartbeats; Airflow's own loop pauses longer."""
ENDS_PER_SECOND = 20
PROGRESS_SECONDS = 10.0
JOB = 1
OUTAGE_GOAL = "goal: under 100"
_OTHERS_RPCS = (
    "QueuePut",
    "Container",
    "FunctionGetInputs",
    "FunctionPutOutputs",
    "Task",
    "AppGetLogs",
    "Auth",
)
"""Beginnings of the names of RPCs that containers make, or the bench in place of a worker."""


def measure(request: Mapping[str, Any]) -> Iterator[Figure]:
    """Measure one group."""
    group, seconds = str(request["group"]), float(request["seconds"])
    folder = Path(request["folder"])
    folder.mkdir(parents=True)
    arguments = ["--max-containers", str(CONTAINERS)]
    with LocalModal(folder / "modal", arguments=arguments) as server:
        _configure(server, request["database"], folder)
        ground = Ground(server, request["database"])
        try:
            if group == "spawns":
                yield ground.spawns("spawns", "")
            elif group == "latency":
                with server.fault("latency", delay=0.05):
                    yield ground.spawns("spawns, every RPC 50 ms longer", "")
            elif group == "threads":
                yield ground.sdk_calls()
            elif group == "outage":
                yield from ground.outage(1_000, seconds)
            else:
                yield from ground.running(int(group.rpartition("-")[2]), seconds)
        finally:
            ground.executor.terminate()


class Ground:
    """An executor on a server, and rows for its tasks."""

    def __init__(self, server: LocalModal, database: str) -> None:
        from airflow_provider_modal import names
        from airflow_provider_modal.executors import ModalExecutor

        self.server = server
        self.resources = names.ResourceNames(ENV)
        self._deploy()
        self._rows = Rows(database)
        self.executor = ModalExecutor(parallelism=100_000)
        self.executor.job_id = JOB
        self.executor.start()
        self.beats: list[float] = []
        """How long each heartbeat took, in milliseconds."""
        self._numbers = itertools.count()
        self._dispatches: dict[str, Any] = {}
        self._submitted: Counter[str] = Counter()

    def spawns(self, name: str, reference: str) -> Figure:
        """How many function calls a second it starts."""
        # Containers that start meanwhile would share the processor.
        self._queue(CONTAINERS)
        self._until(lambda: len([t for t in self.server.tasks() if t["running_inputs"]]) == CONTAINERS)
        began = time.perf_counter()
        self._queue(SPAWNS)
        self._until(lambda: len(self._submitted) == SPAWNS + CONTAINERS)
        return Figure(name, [SPAWNS / (time.perf_counter() - began)], "/s", reference)

    def running(self, size: int, seconds: float) -> Iterator[Figure]:
        """Heartbeats and RPCs with so many tasks running: first while nothing ends, then while tasks come
        and go.
        """
        name = f"{size:,} running"
        self._queue(size)
        self._until(lambda: len(self._submitted) == size)
        with self._rows.heartbeats():
            # What was submitted a moment ago is not asked about yet.
            self._for(seconds)
            self.beats.clear()
            before = self._rpcs()
            self._for(seconds)
            rpcs = self._rpcs() - before
        print(f"{name}: {dict(rpcs)}", file=sys.stderr)
        yield Figure(f"RPCs a minute, {name}, nothing ends", [sum(rpcs.values()) * 60 / seconds], "")
        yield from self._quantiles(f"heartbeat, {name}, nothing ends")
        self.beats.clear()
        self._for(min(seconds, 20), ends=ENDS_PER_SECOND)
        yield from self._quantiles(f"heartbeat, {name}, {ENDS_PER_SECOND} end a second")

    def outage(self, size: int, seconds: float) -> Iterator[Figure]:
        """Heartbeats while the control plane is away and tasks are queued."""
        self._queue(size)
        self._until(lambda: len(self._submitted) == size)
        self.beats.clear()
        self.server.control("pause", seconds=seconds)
        over = time.monotonic() + seconds
        queued = 0
        while time.monotonic() < over:
            self._queue(1)
            queued += 1
            self._for(0.5)
        yield from self._quantiles(f"heartbeat, {size:,} running, Modal is away", OUTAGE_GOAL)
        back = time.monotonic()
        self._until(lambda: len(self._submitted) == size + queued)
        yield Figure(f"{queued} tasks queued meanwhile are submitted", [time.monotonic() - back], "s")

    def sdk_calls(self) -> Figure:
        """Calls of functions of the SDK on this thread, which is the scheduler's, while tasks come and go."""
        calls: Counter[str] = Counter()

        def count(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and frame.f_globals.get("__name__", "").partition(".")[0] in _SDK:
                calls[f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"] += 1

        self._queue(5)
        self._until(lambda: len(self._submitted) == 5)
        sys.setprofile(count)
        try:
            self._queue(50)
            self._until(lambda: len(self._submitted) == 55)
            self._for(3, ends=ENDS_PER_SECOND)
            self.executor.end()
        finally:
            sys.setprofile(None)
        if calls:
            print(calls.most_common(10), file=sys.stderr)
        return Figure("SDK calls on the scheduler's thread", [sum(calls.values())], "", "goal: 0")

    def _deploy(self) -> None:
        import modal

        app = modal.App(self.resources.app, include_source=False)
        app.function(
            name="execute_task",
            serialized=True,
            max_containers=CONTAINERS,
            timeout=3600,
            include_source=False,
        )(_never_ends)
        app.deploy()
        modal.Dict.from_name(self.resources.state_dict, create_if_missing=True).hydrate()
        self._events = modal.Queue.from_name(self.resources.events_queue, create_if_missing=True).hydrate()

    def _queue(self, count: int) -> None:
        workloads = [_workload(next(self._numbers)) for _ in range(count)]
        self._rows.add(workloads)
        for workload in workloads:
            self._dispatches[str(workload.ti.external_executor_id)] = workload.ti.key
            self.executor.queue_workload(workload, session=None)  # type: ignore[arg-type]

    def _beat(self) -> None:
        began = time.perf_counter()
        self.executor.heartbeat()
        self.beats.append(1000 * (time.perf_counter() - began))
        for key, (state, info) in self.executor.get_event_buffer().items():
            if state == "queued":
                self._submitted[str(key.task_id)] += 1
            elif state != "success":
                raise RuntimeError(f"{key} is {state}: {info}")

    def _until(self, condition: Any, patience: float = 120) -> None:
        """Beat until then; a machine may be slow, but something must happen."""
        known, told = -1, 0.0
        while not condition():
            now = time.monotonic()
            if len(self._submitted) != known:
                known, ends = len(self._submitted), now + patience
            if now > ends:
                raise TimeoutError(f"nothing happens any more after {known} submissions")
            if now - told > PROGRESS_SECONDS:
                told = now
                print(f"  {known:,} submitted", file=sys.stderr, flush=True)
            self._beat()
            self.executor.wait_for_event(PAUSE)

    def _for(self, seconds: float, ends: float = 0) -> None:
        """Beat for so long; meanwhile let tasks end, and as many new ones be queued."""
        over, due = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < over:
            if ends and time.monotonic() >= due and self._dispatches:
                due += 1
                self._end(round(ends))
                self._queue(round(ends))
            self._beat()
            time.sleep(PAUSE)

    def _end(self, count: int) -> None:
        """Report the oldest tasks as done, as a worker does; on a thread of its own."""
        from airflow_provider_modal import names, wire

        completions = []
        for dispatch in list(self._dispatches)[:count]:
            key = self._dispatches.pop(dispatch)
            task = wire.TaskKey(key.dag_id, key.task_id, key.run_id, key.try_number, key.map_index)
            completions.append(wire.Completion(dispatch, task, "done").to_wire())
        partition = names.job_partition(JOB)
        threading.Thread(
            target=lambda: self._events.put_many(completions, partition=partition), daemon=True
        ).start()

    def _rpcs(self) -> Counter[str]:
        """How many RPCs of the executor the server has seen, by name."""
        counts: Counter[str] = Counter()
        for name, count in self.server.control("status")["rpcs"].items():
            if not name.startswith(_OTHERS_RPCS):
                counts[name] = count["calls"]
        return counts

    def _quantiles(self, name: str, reference: str = "") -> Iterator[Figure]:
        ordered = sorted(self.beats)
        yield Figure(f"{name}, p50", [statistics.median(ordered)], "ms")
        yield Figure(f"{name}, p99", [ordered[math.ceil(0.99 * len(ordered)) - 1]], "ms", reference)


_SDK = ("modal", "modal_proto", "grpclib", "synchronicity")


class Rows:
    """A row per task in Airflow's own table, without the DAG that they would belong to."""

    def __init__(self, database: str) -> None:
        self._connection = psycopg2.connect(database)
        self._connection.autocommit = True
        with self._connection.cursor() as cursor:
            cursor.execute("ALTER TABLE task_instance DISABLE TRIGGER ALL")

    def add(self, workloads: Sequence[Any]) -> None:
        """Add queued task instances."""
        values = [
            {
                "id": str(workload.ti.id),
                "dag_id": workload.ti.dag_id,
                "task_id": workload.ti.task_id,
                "run_id": workload.ti.run_id,
                "map_index": -1,
                "try_number": 1,
                "max_tries": 0,
                "pool": "default_pool",
                "pool_slots": 1,
                "state": "queued",
                "queued_by_job_id": JOB,
                "external_executor_id": str(workload.ti.external_executor_id),
                "hostname": "",
                "unixname": "",
                "queue": "default",
                "priority_weight": 1,
                "custom_operator_name": "",
            }
            for workload in workloads
        ]
        names = list(values[0])
        with self._connection.cursor() as cursor:
            execute_values(
                cursor,
                f"INSERT INTO task_instance ({', '.join(names)}) VALUES %s",
                [[row[name] for name in names] for row in values],
            )

    @contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Have the containers' tasks, the oldest ones, run and write their heartbeats."""
        statement = (
            "UPDATE task_instance SET state = 'running', last_heartbeat_at = now() WHERE id IN "
            f"(SELECT id FROM task_instance ORDER BY task_id LIMIT {CONTAINERS})"
        )
        over = threading.Event()

        def beat() -> None:
            while not over.wait(5):
                with self._connection.cursor() as cursor:
                    cursor.execute(statement)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _never_ends(call: Mapping[str, Any]) -> None:
    import time

    time.sleep(3600)


def _workload(number: int) -> Any:
    from airflow.executors.workloads import ExecuteTask
    from airflow.executors.workloads.base import BundleInfo
    from airflow.executors.workloads.task import TaskInstanceDTO

    ti = TaskInstanceDTO(
        id=uuid.uuid4(),
        dag_id="bench",
        task_id=f"task-{number:06}",
        run_id="run",
        try_number=1,
        dag_version_id=uuid.uuid4(),
        pool_slots=1,
        queue="default",
        priority_weight=1,
        external_executor_id=str(uuid.uuid4()),
    )
    return ExecuteTask(
        ti=ti,
        dag_rel_path=Path("bench.py"),
        bundle_info=BundleInfo(name="modal-volume", version="0"),
        log_path=None,
        token="token",
    )


def _configure(server: LocalModal, database: str, folder: Path) -> None:
    """Make this process one that has Airflow on ``database`` and Modal at ``server``."""
    from airflow_provider_modal.config import EnvironmentConfig

    os.environ.update(server.env)
    os.environ.update(
        {
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.replace("postgresql:", "postgresql+psycopg2:", 1),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": "",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__FERNET_KEY": "",
            "AIRFLOW__API_AUTH__JWT_SECRET": uuid.uuid4().hex * 2,
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
            "AIRFLOW__MODAL__ENVIRONMENT": ENV,
            # As in a container of the environment: there is no deployment manifest to be read.
            "MODALFLOW_SETTINGS": json.dumps(EnvironmentConfig(connection_string="").to_settings()),
        }
    )
    from airflow.utils.db import upgradedb

    upgradedb()


if __name__ == "__main__":
    serve(measure)

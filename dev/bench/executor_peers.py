"""The same DAGs on a real scheduler with one executor after the other, each with as many workers."""

from __future__ import annotations

import socket
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.executor import serve
from bench.figures import Figure
from local_modal.testing import LocalModal, wait_until
from tools.hybrid import EXECUTOR, Hybrid

DAGS = Path(__file__).parent / "dags" / "bench.py"
WORKERS = 4
CHAIN = 20
"""Tasks one after the other, each of which finds a warm worker that waits."""
DAG_IDS = ("warm", "long", "wide")
READY_SECONDS = 120.0
RUN_SECONDS = 900.0
OPTIONS = {
    "core.parallelism": str(WORKERS),
    "scheduler.use_job_schedule": "False",
    "logging.logging_level": "WARNING",
    # As fast as it goes, for all: otherwise the loop's pause is what is measured.
    "scheduler.scheduler_idle_sleep_time": "0.05",
}
_RUN = "SELECT state FROM dag_run WHERE dag_id = %s"
_TASKS = """
SELECT extract(epoch FROM queued_dttm), extract(epoch FROM start_date), extract(epoch FROM end_date)
FROM task_instance WHERE dag_id = %s ORDER BY start_date
"""


def measure(request: Mapping[str, Any]) -> Iterator[Figure]:
    """Measure one executor."""
    group, folder = str(request["group"]), Path(request["folder"])
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        server = None
        options = dict(OPTIONS)
        if group == "modal":
            arguments = ["--max-containers", str(WORKERS + 1)]
            server = stack.enter_context(LocalModal(folder / "modal", arguments=arguments))
            # Modal's own queue keeps the workers busy; the other executors have one of their own.
            options["core.parallelism"] = str(4 * WORKERS)
        workers = {"default": {"max_containers": WORKERS, "min_containers": WORKERS, "scaledown_window": 600}}
        airflow = stack.enter_context(
            Hybrid(folder, server, request["database"], env="bench", workers=workers, options={})
        )
        airflow.options.update(options if server is None else {})
        airflow.create()
        airflow.options.update(options)
        dags = folder / "bench.py"
        dags.write_text(
            DAGS.read_text().replace('"WIDE"', str(request["tasks"])).replace('"LONG"', str(CHAIN))
        )
        airflow.put_dags(dags)
        others = _execution_api(airflow) if server is None else {}
        # All at once, for each process that imports Airflow takes seconds; one after the other is their turn.
        airflow.start_runs([(dag_id, "run") for dag_id in DAG_IDS])
        airflow.sql("UPDATE dag SET is_paused = true")
        airflow.start_scheduler(core__executor=EXECUTOR if server else "LocalExecutor", **others)
        _await(airflow, "warm")
        _await(airflow, "long")
        waits = [1000 * float(start - queued) for queued, start, _ in airflow.sql(_TASKS, "long")]
        yield Figure(f"{group}: queued to running, warm", waits, "ms", "goal: under 50")
        times = airflow.sql(_TASKS, "long")
        between = [1000 * float(later[1] - former[2]) for former, later in pairwise(times)]
        yield Figure(f"{group}: from a task's end to the next one's start", between, "ms")
        _await(airflow, "wide")
        tasks = airflow.sql(_TASKS, "wide")
        took = max(end for _, _, end in tasks) - min(queued for queued, _, _ in tasks)
        yield Figure(f"{group}: {len(tasks)} tasks that do nothing", [len(tasks) / float(took)], "/s")


def _execution_api(airflow: Hybrid) -> dict[str, str]:
    """Start the API server that LocalExecutor's workers need and return the scheduler's further options."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    others = {"core__execution_api_server_url": f"{url}/execution/"}
    server = [sys.executable, "-m", "airflow", "api-server", "--apps", "execution", "--workers", "1"]
    airflow.start("api-server", [*server, "--host", "127.0.0.1", "--port", str(port)])
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answers() -> bool:
        try:
            with opener.open(f"{url}/execution/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    wait_until(answers, READY_SECONDS, "the API server answers")
    return others


def _await(airflow: Hybrid, dag_id: str) -> None:
    """Let a DAG's run begin, and wait for its end."""
    airflow.sql("UPDATE dag SET is_paused = false WHERE dag_id = %s", dag_id)
    print(f"  {dag_id} ...", file=sys.stderr, flush=True)

    def over() -> bool:
        ((state,),) = airflow.sql(_RUN, dag_id)
        if state == "failed":
            raise RuntimeError(f"{dag_id} failed; logs are in {airflow.folder}")
        return bool(state == "success")

    ends = time.monotonic() + RUN_SECONDS
    while not over():
        if time.monotonic() > ends:
            raise TimeoutError(f"{dag_id} has not ended; logs are in {airflow.folder}")
        time.sleep(0.5)


if __name__ == "__main__":
    serve(measure)

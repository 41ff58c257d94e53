"""What does ModalExecutor cost its scheduler, and how does it compare? Goals are in the last column.

Each group has a local Modal server and an executor of its own, in a process of its own. "Running" is spawned
and not finished: the deployed function never ends, at most 8 containers run it, and ends are put into the
event Queue as a worker would. The database is a real one, with a row per task.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from airflow_provider_modal.container.processes import die_with_parent
from bench.figures import Figure, table
from tools import postgres
from tools.hybrid import new_database

SIZES = (10, 1_000, 10_000)
SCHEDULER_GROUPS = ("spawns", "latency", "threads", *(f"running-{size}" for size in SIZES), "outage")
PEER_GROUPS = ("local", "modal")
GROUP_SECONDS = 1200.0
"""What a group may take on top of what it is asked to measure; an idle machine needs a tenth."""
STOP_SECONDS = 30.0


def main() -> int:
    """Measure, print a table, and say where a goal was missed."""
    options = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="modalflow-bench-") as folder:
        with postgres.serve(Path(folder) / "postgres", options={"max_connections": "300"}) as url:
            for group in options.only or (*SCHEDULER_GROUPS, *PEER_GROUPS):
                with new_database(url, f"bench_{group.replace('-', '_')}") as database:
                    figures += _told(_measured(group, database, Path(folder) / group, options))
    if options.json:
        print(json.dumps([{"name": f.name, "unit": f.unit, "values": list(f.values)} for f in figures]))
    else:
        print(f"\n{os.cpu_count()} cores\n\n{table(figures)}")
    return 0


def _measured(group: str, database: str, folder: Path, options: argparse.Namespace) -> Iterator[Figure]:
    module = "bench.executor_peers" if group in PEER_GROUPS else "bench.executor_scheduler"
    request = {
        "group": group,
        "database": database,
        "folder": str(folder),
        "tasks": options.tasks,
        "seconds": options.seconds,
    }
    child = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environ(),
        preexec_fn=lambda: die_with_parent(signal.SIGTERM),
    )
    bound = GROUP_SECONDS + 4 * options.seconds + options.tasks
    print(f"{group}: at most {bound / 60:.0f} minutes", file=sys.stderr, flush=True)
    try:
        answer, _ = child.communicate(json.dumps(request), timeout=bound)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"group {group} has not ended within {bound:.0f} s") from None
    finally:
        _stop(child)
    if child.returncode:
        raise SystemExit(f"group {group} failed, see above")
    for line in json.loads(answer.splitlines()[-1]):
        yield Figure(line["name"], line["values"], line["unit"], line["reference"])


def _stop(child: subprocess.Popen[str]) -> None:
    """End a group's process, with time to end what it has started."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def serve(measure: Callable[[Mapping[str, object]], Iterator[Figure]]) -> None:
    """Be the process of one group: a request on stdin, figures on stdout."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # What Airflow prints must not get between.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    figures = [
        {"name": f.name, "values": list(f.values), "unit": f.unit, "reference": f.reference}
        for f in measure(json.load(sys.stdin))
    ]
    print(json.dumps(figures), file=answer, flush=True)


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("MODAL_", "AIRFLOW"))}


def _told(figures: Iterator[Figure]) -> Iterator[Figure]:
    for figure in figures:
        print(f"  {figure.name}: {figure.median:.3g} {figure.unit}", file=sys.stderr, flush=True)
        yield figure


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("dev/bench/executor", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        metavar="GROUP",
        choices=(*SCHEDULER_GROUPS, *PEER_GROUPS),
        help=f"a group, repeatable; there are {', '.join((*SCHEDULER_GROUPS, *PEER_GROUPS))}",
    )
    parser.add_argument(
        "--tasks", type=int, default=200, help="no-op tasks beside the other executors (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=60,
        help="how long RPCs are counted, and the control plane is away (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

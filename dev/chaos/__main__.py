"""Runs many tasks on two schedulers while RPCs fail and processes die, and reports what became of them.

Goal: nothing lost, doubled, leaked or without a reason. The exit code is 0 if that was reached.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from chaos import evidence, plan, storm
from chaos.history import Findings, check
from local_modal.testing import LocalModal
from tests.acceptance.recorder import Recorder
from tools import postgres
from tools.hybrid import Hybrid, new_database

DAGS = Path(__file__).parent / "dags" / "chaos.py"
REST_SECONDS = 120.0
"""How long the executors may take, when nothing runs any more, to notice."""
OPTIONS = {
    # Airflow's own defaults are made for days; these for minutes.
    "scheduler.scheduler_heartbeat_sec": "2",
    "scheduler.scheduler_health_check_threshold": "20",
    "scheduler.orphaned_tasks_check_interval": "10",
    "scheduler.task_instance_heartbeat_timeout": "120",
    "scheduler.task_instance_heartbeat_timeout_detection_interval": "10",
    "scheduler.use_job_schedule": "False",
    "modal.silent_after": "20",
}


def main() -> int:
    """Run it and print the report."""
    options = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder: Path = options.folder or Path(tempfile.mkdtemp(prefix="modalflow-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    the_plan = plan.make(options.seed, options.tasks, faulty=options.faulty, outage=options.outage)
    print(f"seed {options.seed}; logs and journal in {folder}", file=sys.stderr, flush=True)
    with ExitStack() as stack:
        database = options.database or stack.enter_context(_own_database(folder / "postgres"))
        arguments = ["--max-containers", str(options.containers + 4), "--seed", str(options.seed)]
        server = stack.enter_context(LocalModal(folder / "modal", arguments=arguments))
        os.environ.update(server.env)
        airflow = stack.enter_context(
            Hybrid(
                folder,
                server,
                database,
                env="chaos",
                workers={"default": {"max_containers": options.containers, "scaledown_window": 300}},
                options=OPTIONS,
            )
        )
        findings, lines = _run(options, the_plan, airflow, folder)
    print("\n".join(lines))
    if findings.kept and options.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if findings.kept else 1


def _run(
    options: argparse.Namespace, the_plan: plan.Plan, airflow: Hybrid, folder: Path
) -> tuple[Findings, list[str]]:
    recorder = Recorder()
    began = time.monotonic()
    airflow.create()
    dags = folder / "chaos.py"
    dags.write_text(DAGS.read_text().replace("RECORDER_PORT", str(recorder.port)))
    airflow.put_dags(dags)
    airflow.start_runs(the_plan.runs)
    _say(f"prepared in {time.monotonic() - began:.0f} s: {len(the_plan.runs)} runs")

    began = time.monotonic()
    its_storm = storm.Storm(
        airflow, the_plan, options.schedulers, lambda: len(recorder.events("start")), folder / "journal.jsonl"
    )
    its_storm.begin()
    deadline = began + 60 * options.minutes
    told = 0.0
    while (left := evidence.unfinished(airflow)) and time.monotonic() < deadline:
        its_storm.blow()
        if time.monotonic() - told > 15:
            told = time.monotonic()
            ended = len(recorder.events("end"))
            _say(f"{told - began:4.0f} s: {ended} ends of user code, {left} runs left")
        time.sleep(0.2)
    struck = its_storm.struck()
    its_storm.end()
    took = time.monotonic() - began
    leaks = evidence.leaks(airflow, storm.living(its_storm.schedulers), REST_SECONDS)
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in recorder.records))
    findings = check(list(recorder.records), evidence.tries(airflow))
    findings.leaked += leaks
    rpcs = sum(count["calls"] for count in airflow.server.control("status")["rpcs"].values())
    recorder.close()
    lines = [
        f"seed {the_plan.seed}, {options.schedulers} schedulers, {sum(findings.states.values())} tasks, "
        f"{took:.0f} s",
        f"RPCs: {rpcs}, of them struck: "
        + (", ".join(f"{count} {kind}" for kind, count in sorted(struck.items())) or "none"),
        "done: " + ", ".join(f"{action} {count}" for action, count in sorted(its_storm.done.items())),
        "tasks: " + ", ".join(f"{count} {state}" for state, count in sorted(findings.states.items())),
        f"user code that had ended and ran again, its container being lost: {findings.repeated}",
        *(f"  {count:4} tries: {reason}" for reason, count in findings.reasons.most_common()),
        f"lost {len(findings.lost)}, doubled {len(findings.doubled)}, leaked {len(findings.leaked)}, "
        f"without reason {len(findings.without_reason)}",
    ]
    for what in ("lost", "doubled", "leaked", "without_reason"):
        lines += [f"  {what}: {sentence}" for sentence in getattr(findings, what)]
    return findings, lines


@contextmanager
def _own_database(folder: Path) -> Iterator[str]:
    with postgres.serve(folder, options=postgres.THROW_AWAY) as url, new_database(url, "airflow") as database:
        yield database


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev/chaos/run", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1000, help="at least so many (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1, help="everything follows from it (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=60, help="what has not ended by then is lost (default: %(default)s)"
    )
    parser.add_argument("--schedulers", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--containers", type=int, default=8, help="of workers (default: %(default)s)")
    parser.add_argument(
        "--faulty", type=float, default=0.2, help="the part of all RPCs that is struck (default: %(default)s)"
    )
    parser.add_argument(
        "--outage", type=float, default=60, help="seconds without a control plane (default: %(default)s)"
    )
    parser.add_argument("--database", help="URL of a PostgreSQL database for it alone; a new one by default")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where logs, journal and records stay; a temporary one, kept on failure, by default",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

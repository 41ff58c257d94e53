"""Does a scheduler that is killed, at whatever moment of handing a task over, lose or double anything?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local_modal.testing import LocalModal
from tests.integration.executor.conftest import workload
from tests.support.task_rows import Rows, insert_row

DRIVER = Path(__file__).parent / "dying_scheduler.py"
ROOT = Path(__file__).parents[3]
MOMENTS = {
    "not yet spawned": "ok-unsent",
    "spawned": "held-unnoted",
    "noted": "held-untold",
    "event taken": "fail-unheard",
}


@pytest.fixture
def killed(
    settings: pytest.MonkeyPatch, modal_server: LocalModal, rows: Rows
) -> Callable[[], dict[str, str]]:
    """Kills a scheduler at each of the moments, all side by side; returns the tasks' dispatches."""

    def kill() -> dict[str, str]:
        from airflow.jobs.job import Job

        environ = {**modal_server.env, **os.environ, "DATABASE": rows.url}
        environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "dev")])
        dispatches: dict[str, str] = {}
        dying = []
        for job_id, (moment, task_id) in enumerate(MOMENTS.items(), start=100):
            dispatches[task_id] = str(uuid.uuid4())
            insert_row(Job, {"id": job_id, "job_type": "SchedulerJob", "state": "success"})
            rows.task("queued", dispatches[task_id], task_id=task_id, queued_by_job_id=job_id)
            command = [sys.executable, str(DRIVER), moment, task_id, dispatches[task_id], str(job_id)]
            dying.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True))
        for process in dying:
            _, complaint = process.communicate(timeout=240)
            assert process.returncode == -signal.SIGKILL, complaint
        return dispatches

    return kill


def test_a_scheduler_that_is_killed_loses_and_doubles_nothing(
    killed: Callable[[], dict[str, str]],
    settings: pytest.MonkeyPatch,
    new_executor: Callable[..., Any],
    rows: Rows,
    release: Callable[[str], None],
) -> None:
    import modal
    from airflow.jobs.job import Job, JobState
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.utils.session import create_session

    killed()
    settings.setenv("AIRFLOW__MODAL__SILENT_AFTER", "2")
    job = Job()
    with create_session() as session:
        job.state = JobState.RUNNING
        session.add(job)
        session.flush()
        executor = new_executor(job_id=job.id)
    runner = SchedulerJobRunner(job, executors=[executor])
    assert runner.adopt_or_reset_orphaned_tasks() == 0, "each of them has a dispatch"
    for task_id in MOMENTS.values():
        release(task_id)

    def schedule() -> None:
        """Do what Airflow's loop does: beat, take the events, queue again what was handed back."""
        executor.wait_for_event(0.2)
        executor.heartbeat()
        with create_session() as session:
            runner._process_executor_events(executor=executor, session=session)
        for (task_id,) in rows.run("SELECT task_id FROM task_instance WHERE state = 'scheduled'"):
            dispatch = str(uuid.uuid4())
            rows.run(
                "UPDATE task_instance SET state = 'queued', queued_dttm = now(), queued_by_job_id = %s, "
                "external_executor_id = %s WHERE task_id = %s",
                job.id,
                dispatch,
                task_id,
            )
            config = {"modal": {"env": {"DATABASE": rows.url}}}
            again = workload(task_id, external_executor_id=dispatch, executor_config=config)
            executor.queue_workload(again, session=None)

    def states() -> dict[str, str]:
        return dict(rows.run("SELECT task_id, state FROM task_instance"))

    expected = {
        task_id: "failed" if task_id.startswith("fail") else "success" for task_id in MOMENTS.values()
    }
    deadline = time.monotonic() + 180
    while (states() != expected or executor.slots_occupied) and time.monotonic() < deadline:
        schedule()
    assert (states(), executor.slots_occupied) == (expected, 0)
    record = modal.Dict.from_name("stand-in-starts")
    ran = [str(key).split("/")[1] for key in list(record.keys()) if key.startswith("ran/")]
    assert sorted(ran) == sorted(MOMENTS.values())
    [(told,)] = rows.run("SELECT extra FROM log WHERE event = 'state mismatch'")
    assert "out of memory: the container was killed" in told
    # Nobody is left to send anything to a partition that nobody reads.
    assert executor.counters["foreign_events"] == 0

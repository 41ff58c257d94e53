"""Makes happen what the plan says, while the tasks run."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from chaos.plan import Plan, Step
from local_modal.clients import ControlError
from tools.hybrid import Hybrid, Scheduler

WORKER = "execute_task"
STALL_SECONDS = 20.0
"""A request that nobody ever answers breaks off at last: the SDK has no deadline for some."""
BACK_AFTER = 3.0
"""Seconds until a scheduler that was killed is started again."""


class Storm:
    """The faults of one run.

    :param started: tells how many starts of user code are recorded.
    :param journal: what was done, one JSON object a line.
    """

    def __init__(
        self, airflow: Hybrid, plan: Plan, schedulers: int, started: Callable[[], int], journal: Path
    ) -> None:
        self._airflow = airflow
        self._modal = airflow.server
        self._weather = [dict(fault) for fault in plan.weather]
        self._steps = deque(plan.steps)
        self._started = started
        self._journal = journal
        self._began = time.monotonic()
        self._stall_until = 0.0
        self._back_at: list[float] = []
        self.schedulers = [airflow.start_scheduler() for _ in range(schedulers)]
        self.done: dict[str, int] = {}
        """How often each action hit somebody."""

    def begin(self) -> None:
        """Put the weather in force."""
        for fault in self._weather:
            if fault["fault"] != "stall":
                self._modal.set_fault(**fault)
        self._note("weather", faults=self._weather)

    def blow(self) -> None:
        """Do what is due; to be called again and again."""
        now = time.monotonic()
        for fault in self._weather:
            if fault["fault"] == "stall" and now >= self._stall_until:
                self._modal.set_fault(**fault, seconds=STALL_SECONDS)
                self._stall_until = now + STALL_SECONDS
        while self._back_at and now >= self._back_at[0]:
            self._back_at.pop(0)
            self.schedulers.append(self._airflow.start_scheduler())
            self._note("scheduler started")
        if self._steps and self._started() >= self._steps[0].at and self._do(self._steps[0]):
            self._steps.popleft()

    def end(self) -> None:
        """Fine weather again; schedulers that are still to come back do so now."""
        self._modal.clear_faults()
        for _ in self._back_at:
            self.schedulers.append(self._airflow.start_scheduler())
        self._back_at.clear()
        self._note("fine weather", left=[step.action for step in self._steps])

    def struck(self) -> dict[str, int]:
        """How many RPCs each kind of fault has struck."""
        counts: dict[str, int] = {}
        for fault in self._modal.faults():
            counts[fault["fault"]] = counts.get(fault["fault"], 0) + fault["struck"]
        return counts

    def _do(self, step: Step) -> bool:
        """Return whether it happened; otherwise it is tried again."""
        if step.action in ("kill_worker", "preempt_worker", "redeliver"):
            hit = self._hit_worker(step)
        elif step.action == "outage":
            self._note("outage", seconds=step.seconds)
            self._modal.control("pause", seconds=step.seconds)
            time.sleep(step.seconds)
            hit = "the control plane"
        else:
            hit = self._hit_schedulers(step)
        if hit is None:
            return False
        self.done[step.action] = self.done.get(step.action, 0) + 1
        self._note(step.action, at=step.at, hit=hit)
        return True

    def _hit_worker(self, step: Step) -> str | None:
        busy = [task for task in self._modal.tasks(WORKER) if task["running_inputs"]]
        if not busy:
            return None
        task_id = str(busy[int(step.luck * len(busy))]["task_id"])
        try:
            self._modal.control(step.action.removesuffix("_worker"), task_id=task_id)
        except ControlError:
            return None  # it was faster
        return task_id

    def _hit_schedulers(self, step: Step) -> str | None:
        alive = [scheduler for scheduler in self.schedulers if scheduler.process.poll() is None]
        if not alive:
            return None
        chosen = alive if step.action == "kill_all_schedulers" else [alive[int(step.luck * len(alive))]]
        for scheduler in chosen:
            (scheduler.stop if step.action == "restart_scheduler" else scheduler.kill)()
            self._back_at.append(time.monotonic() + BACK_AFTER)
        return ", ".join(scheduler.log_path.stem for scheduler in chosen)

    def _note(self, action: str, **details: Any) -> None:
        entry: Mapping[str, Any] = {
            "after": round(time.monotonic() - self._began, 1),
            "started": self._started(),
            "action": action,
            **details,
        }
        with self._journal.open("a") as journal:
            journal.write(json.dumps(entry) + "\n")


def living(schedulers: list[Scheduler]) -> list[Scheduler]:
    """Return those that still run."""
    return [scheduler for scheduler in schedulers if scheduler.process.poll() is None]

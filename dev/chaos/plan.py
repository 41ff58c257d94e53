"""What goes wrong in a run, and when? All of it follows from the seed and the number of tasks.

Steps are due by progress, not by time: a slow machine sees the same faults at the same tasks.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TASKS_PER_RUN = 10
"""Of the DAG ``chaos``."""

LAST_STEP = 0.8
"""After this part of the tasks nothing goes wrong any more but RPCs."""

WEATHER: Mapping[str, Mapping[str, Any]] = {
    "fail": {"part": 0.30, "status": "UNAVAILABLE"},
    "late": {"part": 0.25, "delay": 1.5, "jitter": 1.0},
    "twice": {"part": 0.20},
    "lose": {"part": 0.15},
    "stall": {"part": 0.10},
}
"""Faults that are in force all the time, and their parts of the RPCs that are struck."""


@dataclass(frozen=True)
class Step:
    """Something that goes wrong once.

    :param at: how many starts of user code are recorded before it happens.
    :param luck: from 0 to below 1; chooses whom it hits.
    :param seconds: how long it takes, where it does not happen at once.
    """

    at: int
    action: str
    luck: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """All that happens in one run."""

    seed: int
    runs: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    weather: tuple[Mapping[str, Any], ...]


def make(seed: int, tasks: int, *, faulty: float, outage: float) -> Plan:
    """Return the plan for a seed.

    :param tasks: at least so many; rounded up to whole DAG runs.
    :param faulty: the part of all RPCs that is struck.
    :param outage: seconds for which the control plane is away, once.
    """
    chance = random.Random(seed)
    # The hungry ones cost a cold container each, and a few are as good as many.
    hungry = tasks // 100
    runs = -(-(tasks - hungry) // TASKS_PER_RUN)
    wanted = [
        ("kill_worker", max(1, tasks // 40)),
        ("preempt_worker", max(1, tasks // 100)),
        ("redeliver", max(1, tasks // 50)),
        ("kill_scheduler", max(1, tasks // 200)),
        ("kill_all_schedulers", tasks // 500),
        ("restart_scheduler", tasks // 300),
    ]
    steps = [
        Step(chance.randrange(1, max(2, int(tasks * LAST_STEP))), action, chance.random())
        for action, count in wanted
        for _ in range(count)
    ]
    if outage:
        steps.append(Step(tasks // 2, "outage", seconds=outage))
    return Plan(
        seed,
        tuple(("chaos", f"run-{number:03}") for number in range(runs))
        + tuple(("chaos_hungry", f"hungry-{number:03}") for number in range(hungry)),
        tuple(sorted(steps, key=lambda step: step.at)),
        tuple(_weather(faulty)),
    )


def _weather(faulty: float) -> list[Mapping[str, Any]]:
    faults: list[Mapping[str, Any]] = []
    left = 1.0
    for kind, settings in WEATHER.items():
        # A request that one fault lets pass meets the next one.
        probability = faulty * settings["part"] / left
        left -= faulty * settings["part"]
        others = {name: value for name, value in settings.items() if name != "part"}
        if faulty:
            faults.append({"fault": kind, "rpc": "*", "probability": probability, **others})
    if faulty:
        # Two function calls of one dispatch, as when Modal has forgotten the first request.
        faults.append({"fault": "twice", "rpc": "FunctionMap", "forget_key": True, "probability": faulty / 4})
    return faults

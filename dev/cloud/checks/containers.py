"""What a container is: its names, clocks, environment, and what its kernel can do."""

from __future__ import annotations

import statistics
import time
from typing import Any

from cloud.findings import Check, Seen, assumption, judge, unchecked
from cloud.session import Session

COLD_SECONDS = 60.0
WARM_SECONDS = 1.0
MONOTONIC_SECONDS = 900.0
SKEW_SECONDS = 2.0


CHECKS: list[Check] = []


def _two(session: Session) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two containers that run at the same time, and had nothing to do before."""

    def ask() -> list[dict[str, Any]]:
        calls = [session.function("identity").spawn(3.0) for _ in range(2)]
        return [call.get(timeout=60) for call in calls]

    first, second = session.once("identity", ask)
    return first, second


def _process_tools(session: Session) -> dict[str, Any]:
    found: dict[str, Any] = session.once("process tools", session.function("process_tools").remote)
    return found


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _range(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"


@assumption(
    CHECKS,
    "cold start",
    f"A new container of a small image runs user code within {COLD_SECONDS:.0f} s.",
    cares="airflow_provider_modal.app",
    seconds=120,
    quiet=True,
)
def _cold_start(session: Session) -> Seen:
    function = session.function("single_use")
    seconds = []
    for _ in range(3):
        began = time.time()
        there, _ = function.remote()
        seconds.append(there - began)
    return judge(
        max(seconds) < COLD_SECONDS,
        f"From the call to user code in a new container: {_range(seconds)} s (clock difference included).",
        "Cold starts of a small image take that long, before Airflow is imported: keep a container warm.",
        seconds=seconds,
    )


@assumption(
    CHECKS,
    "warm start",
    f"A call to a warm container is answered within {WARM_SECONDS:.0f} s.",
    cares="airflow_provider_modal.executors",
    quiet=True,
)
def _warm_start(session: Session) -> Seen:
    function = session.function("stamp")
    function.remote()
    starts, round_trips = [], []
    for _ in range(10):
        began = time.time()
        there = function.remote()
        round_trips.append(time.time() - began)
        starts.append(there - began)
    return judge(
        statistics.median(round_trips) < WARM_SECONDS,
        f"Call and answer with a warm container: {_range(round_trips)} s, to user code {_range(starts)} s "
        "(clock difference included).",
        "Each task waits that long even on a warm container.",
        round_trips=round_trips,
    )


@assumption(
    CHECKS,
    "task id",
    "MODAL_TASK_ID (ta-...) tells containers apart.",
    cares="airflow_provider_modal.container.identity",
)
def _two_containers(session: Session) -> Seen:
    first, second = _two(session)
    ids = {first["task_id"], second["task_id"]}
    holds = len(ids) == 2 and all(each.startswith("ta-") for each in ids)
    return judge(
        holds,
        f"MODAL_TASK_ID is {first['task_id'] or 'missing'} and {second['task_id'] or 'missing'}.",
        "Airflow's fence against second starts has no name for a container to go by.",
    )


@assumption(
    CHECKS,
    "host name",
    "Every container has the same host name, so it is no identity.",
    cares="airflow_provider_modal.container.identity",
)
def _host_name(session: Session) -> Seen:
    first, second = _two(session)
    return judge(
        first["host"] == second["host"],
        f"Host names {first['host']!r} and {second['host']!r}.",
        "Harmless: the task id is used instead of the host name either way.",
    )


@assumption(
    CHECKS,
    "pid and user",
    "Process ids and users repeat from container to container.",
    cares="airflow_provider_modal.container.identity",
)
def _pids(session: Session) -> Seen:
    first, second = _two(session)
    return judge(
        first["pid"] == second["pid"],
        f"Entry process {first['pid']} as {first['user']} (uid {first['uid']}), and {second['pid']} as "
        f"{second['user']}.",
        "Harmless: nothing relies on pids being equal, only on them not being a name.",
    )


@assumption(CHECKS, "private /tmp", "A container's /tmp is its own.", cares="airflow_provider_modal.worker")
def _private_tmp(session: Session) -> Seen:
    seen = [each["found_marker"] for each in _two(session)]
    return judge(
        not any(seen),
        f"A file that a container put into /tmp is {'' if any(seen) else 'not '}in the other's.",
        "Files of one task can be seen by another one.",
    )


@assumption(
    CHECKS,
    "monotonic clock",
    "CLOCK_MONOTONIC starts near zero with the container.",
    cares="airflow_provider_modal.worker, dev/local_modal",
)
def _monotonic(session: Session) -> Seen:
    first, _ = _two(session)
    return judge(
        first["monotonic"] < MONOTONIC_SECONDS,
        f"time.monotonic() in a new container: {first['monotonic']:,.1f} s.",
        "Harmless: code must be right with a clock near zero, and needn't be where it isn't.",
        seconds=first["monotonic"],
    )


@assumption(
    CHECKS,
    "wall clock",
    f"Clocks of containers and clients agree within {SKEW_SECONDS:.0f} s.",
    cares="airflow_provider_modal.worker.claim",
)
def _clock_skew(session: Session) -> Seen:
    function = session.function("stamp")
    function.remote()
    before = time.time()
    there = function.remote()
    after = time.time()
    skew = max(before - there, there - after, 0.0)
    return judge(
        skew < SKEW_SECONDS,
        f"The container's clock is within {skew + (after - before):.2f} s of this machine's.",
        "Times that are compared across machines (heartbeats, claims) need a wider margin; check this "
        "machine's clock first.",
    )


@assumption(
    CHECKS,
    "child processes",
    "PR_SET_CHILD_SUBREAPER and PR_SET_PDEATHSIG work.",
    cares="airflow_provider_modal.container.processes",
)
def _child_processes(session: Session) -> Seen:
    found = _process_tools(session)
    zygote = found["zygote"]
    holds = found["subreaper"] and zygote.get("children_die_with_it")
    return judge(
        bool(holds),
        f"Orphans are adopted: {_yes(found['subreaper'])}; a forked child dies with its parent: "
        f"{_yes(zygote.get('children_die_with_it'))}; pidfd_open works, which nothing relies on: "
        f"{_yes(zygote.get('pidfd'))}.",
        "Processes that a task leaves behind can outlive it; they must be looked for in another way.",
        **found,
    )


@assumption(
    CHECKS,
    "zygote",
    "A single-threaded process forks within milliseconds.",
    cares="airflow_provider_modal.container.zygote",
)
def _zygote(session: Session) -> Seen:
    found = _process_tools(session)["zygote"]
    if not found["answered"]:
        return judge(False, "The forking process didn't answer.", "Each task must import Airflow itself.")
    return judge(
        found["threads"] == 1 and found["fork_ms"] < 500,
        f"fork() of a process with {found['threads']} thread took {found['fork_ms']} ms.",
        "The pre-imported parent may not pay off, or isn't safe to fork.",
        **found,
    )


@assumption(
    CHECKS,
    "environment order",
    "Secrets overrule the image, later secrets earlier ones, env= all of them.",
    cares="airflow_provider_modal.app",
)
def _variables(session: Session) -> Seen:
    found = session.function("variables").remote()
    holds = (
        found.get("FROM_IMAGE") == "image"
        and found.get("IN_BOTH") == "first secret"
        and found.get("IN_SECRETS") == "second secret"
        and found.get("IN_ALL") == "env="
    )
    return judge(
        holds,
        f"A name in image and secret is the {found.get('IN_BOTH')}'s, in two secrets the "
        f"{found.get('IN_SECRETS')}'s, in a secret and env= {found.get('IN_ALL')!r}.",
        "Settings of a deployment may be overruled by an image's or a user's own secret.",
        **found,
    )


@assumption(
    CHECKS,
    "with_options replaces",
    "env= and secrets= of with_options replace those of the function.",
    cares="airflow_provider_modal.executors",
)
def _with_options(session: Session) -> Seen:
    found = session.function("variables").with_options(env={"EXTRA": "1"}).remote()
    return judge(
        found.get("EXTRA") == "1" and "IN_SECRETS" not in found and "IN_ALL" not in found,
        "With env= in with_options the function's own secrets are "
        f"{'there' if 'IN_SECRETS' in found else 'gone'}.",
        "Secrets needn't be added again; doing so is harmless.",
        **found,
    )


@assumption(
    CHECKS,
    "preemption",
    "SIGINT, at least 15 s, then the input starts again elsewhere.",
    cares="airflow_provider_modal.worker.limits",
)
def _preemption(session: Session) -> Seen:
    return unchecked("A preemption can't be provoked from outside.")

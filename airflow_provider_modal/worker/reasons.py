"""What is said of a dispatch that did not come to a good end: what happened, and what to do about it?"""

from __future__ import annotations

import json
from typing import Any

from airflow_provider_modal import airflow_settings, names, wire
from airflow_provider_modal.worker import claim, memory


def of_workload(call: wire.TaskCall, part: str) -> dict[str, Any]:
    """Return one part of an Airflow 3 workload; empty for other kinds."""
    return json.loads(call.workload).get(part) or {} if call.kind != "command" else {}


def profile_and_memory(call: wire.TaskCall) -> tuple[str, int | None]:
    """Return a task's worker profile, and at how many MiB its container is killed."""
    workers = airflow_settings.deployed_config().workers
    queue = str(of_workload(call, "ti").get("queue"))
    # A task's queue is its worker profile; Airflow's default queue has another name.
    profile = queue if queue in workers else names.DEFAULT_PROFILE
    limit = workers[profile].memory if profile in workers else None
    return profile, call.memory or limit


def lost(call: wire.TaskCall, verdict: claim.Verdict) -> str:
    """Return that a former delivery's container was lost, and what to do should it be for memory."""
    profile, limit = profile_and_memory(call)
    out_of_memory = memory.reason_of_lost(str(verdict.lost_container), profile, limit, verdict.lost_memory)
    if out_of_memory is not None:
        return out_of_memory
    of = f"of {limit} MiB " if limit is not None else ""
    hint = f"Should the memory {of}have been too little, {memory.advice(profile, limit)}"
    return f"{verdict.reason}. {hint}"


def preempted() -> str:
    """Return that Modal took the container away while the task ran."""
    return (
        "preempted: Modal took the container away before the task ended; user code has run, so it "
        f"was not started again. If the task can run twice, give it retries or {claim.RERUN}"
    )


def timeout(call: wire.TaskCall, time_limit: float) -> str:
    """Return that the task ran for longer than it may.

    :param time_limit: what was left of the call's for the task, in seconds.
    """
    profile, _ = profile_and_memory(call)
    late = ""
    if time_limit < call.timeout:
        late = f", which is {call.timeout:g} s without what the container needed to get ready"
    return (
        f"timeout: the task ran longer than its limit of {time_limit:g} s{late}; set "
        "executor_config={'modal': {'timeout': seconds}}, or raise "
        f"workers.{profile}.timeout in config.yaml and run: modalflow create"
    )

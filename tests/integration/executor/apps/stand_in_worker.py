"""A deployed App whose ``execute_task`` does what its task's id says, in place of the real worker."""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import Any

import modal
import psycopg2

from airflow_provider_modal import names, wire

ENV = "stand-in"
LOOKED_AT = ("FROM_TASK_SECRET", "SHARED", "MODALFLOW_ROLE", "FROM_FUNCTION")
if os.environ.get("LACKS_A_PACKAGE"):
    import no_such_package  # noqa: F401

resources = names.ResourceNames(ENV)
app = modal.App(resources.app)
state = modal.Dict.from_name(resources.state_dict, create_if_missing=True)
events = modal.Queue.from_name(resources.events_queue, create_if_missing=True)
starts = modal.Dict.from_name("stand-in-starts", create_if_missing=True)


def moved(call: wire.TaskCall, former: str, state: str) -> bool:
    """Move the task instance on, if it is in its former state: Airflow's compare-and-set."""
    if "DATABASE" not in call.env:
        return True
    with closing(psycopg2.connect(call.env["DATABASE"])) as connection:
        connection.autocommit = True
        rows = connection.cursor()
        rows.execute(
            "UPDATE task_instance SET state = %s WHERE task_id = %s AND state = %s",
            (state, call.key.task_id, former),
        )
        return bool(rows.rowcount)


def work(message: dict[str, Any]) -> dict[str, Any]:
    call = wire.TaskCall.from_wire(message)
    call_id = modal.current_function_call_id()
    starts[f"{call.dispatch}/{call_id}"] = time.time()
    container = str(os.environ.get("MODAL_TASK_ID"))
    state[names.claim_key(call.dispatch)] = wire.Claim(call_id, "started", container, time.time()).to_wire()
    what, _, _ = call.key.task_id.partition("-")
    runs = moved(call, "queued", "running")
    if not runs:
        what = "obsolete"
    elif "DATABASE" in call.env:
        starts[f"ran/{call.key.task_id}/{call_id}"] = container
    if what == "look":
        starts[f"look/{call.dispatch}"] = {name: os.environ.get(name) for name in LOOKED_AT}
    if what == "hang":
        time.sleep(300)
    if what == "slow":
        time.sleep(2)
    while what == "held" and f"go/{call.key.task_id}" not in starts:
        time.sleep(0.05)
    if what == "raise":
        raise RuntimeError("the stand-in was told to raise")
    outcome: wire.Outcome = "done"
    reason = None
    if what == "fail":
        outcome, reason = "failed", "out of memory: the container was killed"
    if what == "obsolete":
        outcome = "obsolete"
    if what == "unready":
        outcome, reason = "not_started", "the container's Airflow process could not start"
    if runs and outcome == "done":
        moved(call, "running", "success")
    completion = wire.Completion(
        dispatch=call.dispatch,
        key=call.key,
        outcome=outcome,
        reason=reason,
        call_id=call_id,
        container=container,
        started_at=time.time(),
        ended_at=time.time(),
    ).to_wire()
    if what != "mute":
        state[names.result_key(call.dispatch)] = completion
    if what not in ("mute", "unsent"):
        events.put(completion, partition=call.partition, block=False)
    return completion


image = modal.Image.debian_slim().add_local_python_source("airflow_provider_modal")
execute_task = app.function(
    name=names.EXECUTE_TASK,
    image=image,
    max_containers=3,
    scaledown_window=60,
    timeout=600,
    memory=(256, 512),
    env={"FROM_FUNCTION": "yes"},
)(work)
app.function(name=names.task_function("broken"), image=image, env={"LACKS_A_PACKAGE": "yes"}, timeout=600)(
    work
)
app.function(name=names.task_function("scarce"), image=image, max_containers=1, timeout=600)(work)

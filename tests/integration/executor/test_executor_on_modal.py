from __future__ import annotations

import gc
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.state import TaskInstanceState

from airflow_provider_modal import deployment, names, wire
from airflow_provider_modal.app import describe
from airflow_provider_modal.config import EnvironmentConfig
from airflow_provider_modal.volume.files import VolumeFiles
from local_modal.testing import LocalModal, wait_until

SUCCESS = (TaskInstanceState.SUCCESS, None)
BLOCKED = 2.8
"""Seconds above which a heartbeat counts as blocked by Modal: a call to an absent one takes these tests'
``rpc_timeout`` of at least 3; a busy machine alone can make half a second."""


def task_instance(task_id: str, external_executor_id: str | None, **values: Any) -> Any:
    fields = {
        "key": TaskInstanceKey("d", task_id, "r", 1, -1),
        "external_executor_id": external_executor_id,
        "last_heartbeat_at": None,
        "queued_dttm": datetime.now(timezone.utc),
        "queued_by_job_id": None,
        "queue": "default",
        **values,
    }
    return SimpleNamespace(**fields)


@pytest.fixture
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    # These tasks are in no database; what it contributes is tested with real rows in a file of its own.
    monkeypatch.setattr("airflow_provider_modal.executors.database.object_session", lambda ti: None)

    def away(seconds: float) -> None:
        raise ConnectionError("no database")

    monkeypatch.setattr("airflow_provider_modal.executors.database.live", away)


def test_tasks_run_and_their_ends_come_back(loop: Any, state_dict: Any) -> None:
    tasks = [f"ok-{n}" for n in range(20)]
    dispatches = loop.queue(*tasks)
    loop.until(lambda: loop.ended(*tasks))
    for task in tasks:
        assert loop.events[task][-1] == SUCCESS
        call_id = state_dict[names.call_key(dispatches[task])]
        # The end may overtake the id: both can come between two heartbeats, and the last event counts.
        assert loop.events[task][:-1] in ([], [(TaskInstanceState.QUEUED, f"{dispatches[task]}/{call_id}")])
    assert (loop.executor.slots_occupied, len(loop.executor.ledger)) == (0, 0)
    assert not loop.executor.busy
    assert loop.longest_heartbeat < BLOCKED


def test_the_schedulers_thread_never_calls_the_sdk(loop: Any) -> None:
    called: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        module = str(frame.f_globals.get("__name__"))
        if event == "call" and module.partition(".")[0] in ("modal", "synchronicity", "grpclib"):
            called.add(f"{module}.{frame.f_code.co_name}")

    loop.queue("ok-watched", "hang-watched")
    # The SDK's objects end on whatever thread the collector happens to run.
    gc.collect()
    gc.disable()
    sys.setprofile(note)
    try:
        loop.until(lambda: loop.ended("ok-watched") and "hang-watched" in loop.events)
        [hanging] = loop.executor.running
        external_id = loop.events["hang-watched"][0][1]
        loop.executor.revoke_task(ti=task_instance("hang-watched", external_id))
        loop.executor.end()
    finally:
        sys.setprofile(None)
        gc.enable()
    assert hanging.task_id == "hang-watched"
    assert called == set()


def test_the_external_id_is_told_while_the_task_runs(loop: Any, release: Callable[[str], None]) -> None:
    dispatch = loop.queue("held-told")["held-told"]
    loop.until(lambda: "held-told" in loop.events)
    [(state, external_id)] = loop.events["held-told"]
    assert state == TaskInstanceState.QUEUED
    assert external_id.startswith(f"{dispatch}/fc-")
    release("held-told")
    loop.until(lambda: loop.ended("held-told"))


def test_an_infrastructure_failure_is_told_with_its_reason(loop: Any) -> None:
    loop.queue("fail")
    loop.until(lambda: loop.ended("fail"))
    assert loop.events["fail"][-1] == (TaskInstanceState.FAILED, "out of memory: the container was killed")


@pytest.mark.usefixtures("no_database")
@pytest.mark.parametrize(
    ("task", "state", "told"),
    [
        ("raise", TaskInstanceState.FAILED, "RuntimeError: the stand-in was told to raise"),
        ("mute", TaskInstanceState.SUCCESS, None),  # only Modal has the function's return value
        ("unsent", TaskInstanceState.SUCCESS, None),  # only the state Dict has the result
    ],
)
def test_an_end_without_an_event_is_found_by_its_silence(
    settings: pytest.MonkeyPatch,
    new_loop: Callable[..., Any],
    task: str,
    state: TaskInstanceState,
    told: str | None,
) -> None:
    settings.setenv("AIRFLOW__MODAL__SILENT_AFTER", "1")
    loop = new_loop()
    loop.queue(task)
    loop.until(lambda: loop.ended(task))
    found, info = loop.events[task][-1]
    assert found == state
    assert told in info if told else info is None
    assert loop.executor.counters["silent_checks"] >= 1
    assert loop.executor.slots_occupied == 0


@pytest.mark.usefixtures("no_database")
def test_a_task_that_is_only_slow_is_asked_about_and_left_alone(
    settings: pytest.MonkeyPatch, new_loop: Callable[..., Any], release: Callable[[str], None]
) -> None:
    settings.setenv("AIRFLOW__MODAL__SILENT_AFTER", "0.5")
    loop = new_loop()
    loop.queue("held-silent")
    loop.until(lambda: loop.executor.counters["silent_checks"] >= 1)
    release("held-silent")
    loop.until(lambda: loop.ended("held-silent"))
    assert loop.events["held-silent"][-1] == SUCCESS


def test_a_revoked_task_is_cancelled_at_modal(
    loop: Any, modal_server: LocalModal, stand_in_starts: Callable[[str], list[str]]
) -> None:
    import modal

    dispatch = loop.queue("hang-revoked")["hang-revoked"]
    loop.until(lambda: stand_in_starts(dispatch))
    [call_id] = stand_in_starts(dispatch)
    loop.executor.revoke_task(ti=task_instance("hang-revoked", f"{dispatch}/{call_id}"))
    assert loop.executor.slots_occupied == 0

    def over() -> bool:
        try:
            modal.FunctionCall.from_id(call_id).get(timeout=0)
        except TimeoutError:
            return False
        except BaseException:  # what Modal raises for a cancelled call is no Exception
            return True
        return True

    wait_until(over, 60)
    loop.beat()
    assert [state for state, _ in loop.events.get("hang-revoked", [])] in ([], [TaskInstanceState.QUEUED])


def test_modal_away_fails_nothing_and_blocks_nobody(
    loop: Any, modal_server: LocalModal, stand_in_starts: Callable[[str], list[str]]
) -> None:
    loop.queue("ok-before")
    loop.until(lambda: loop.ended("ok-before"))
    modal_server.stop()
    try:
        tasks = [f"ok-away-{n}" for n in range(5)]
        dispatches = loop.queue(*tasks)
        away = time.monotonic() + 3
        loop.until(lambda: time.monotonic() > away)
        assert not loop.events.keys() & set(tasks)
        assert loop.executor.in_flight_submissions == 5
    finally:
        modal_server.start()
    loop.until(lambda: loop.ended(*tasks), 60)
    assert all(loop.events[task][-1] == SUCCESS for task in tasks)
    assert all(len(stand_in_starts(dispatch)) == 1 for dispatch in dispatches.values())
    assert loop.executor.slots_occupied == 0
    assert loop.longest_heartbeat < BLOCKED


@pytest.mark.usefixtures("no_database")
def test_a_modal_that_keeps_silent_blocks_nobody(
    settings: pytest.MonkeyPatch, new_loop: Callable[..., Any], modal_server: LocalModal
) -> None:
    settings.setenv("AIRFLOW__MODAL__RPC_TIMEOUT", "3")
    loop = new_loop()
    loop.queue("ok-heard")
    loop.until(lambda: loop.ended("ok-heard"))
    os.kill(modal_server.pid, signal.SIGSTOP)
    try:
        tasks = [f"ok-silence-{n}" for n in range(5)]
        loop.queue(*tasks)
        silence = time.monotonic() + 5
        loop.until(lambda: time.monotonic() > silence)
        assert loop.executor.in_flight_submissions == 5
    finally:
        os.kill(modal_server.pid, signal.SIGCONT)
    loop.until(lambda: loop.ended(*tasks), 60)
    # What was sent into the silence may have started as well; each task has one end all the same.
    assert all([state for state, _ in loop.events[task]].count("success") == 1 for task in tasks)
    assert loop.executor.slots_occupied == 0
    assert loop.longest_heartbeat < BLOCKED


def test_modal_away_for_too_long_fails_the_task_with_that_reason(
    settings: pytest.MonkeyPatch, new_loop: Callable[..., Any], modal_server: LocalModal
) -> None:
    settings.setenv("AIRFLOW__MODAL__SUBMIT_DEADLINE", "2")
    loop = new_loop()
    modal_server.stop()
    try:
        loop.queue("ok-late")
        loop.until(lambda: loop.ended("ok-late"))
    finally:
        modal_server.start()
    state, reason = loop.events["ok-late"][-1]
    assert state == TaskInstanceState.FAILED
    assert "Modal does not answer" in reason and "given up after" in reason
    assert loop.executor.slots_occupied == 0


def test_an_environment_that_is_not_deployed_is_told(
    settings: pytest.MonkeyPatch, new_loop: Callable[..., Any]
) -> None:
    settings.setenv("AIRFLOW__MODAL__ENVIRONMENT", "nowhere")
    loop = new_loop()
    loop.queue("ok")
    loop.until(lambda: loop.ended("ok"))
    state, reason = loop.events["ok"][-1]
    assert state == TaskInstanceState.FAILED
    assert "modalflow create --env nowhere" in reason


@pytest.mark.usefixtures("no_database")
def test_another_executor_takes_over_and_hears_of_the_end(
    new_loop: Callable[..., Any],
    stand_in_starts: Callable[[str], list[str]],
    release: Callable[[str], None],
) -> None:
    first, second = new_loop(), new_loop()
    dispatch = first.queue("held-adopted")["held-adopted"]
    first.until(lambda: stand_in_starts(dispatch))
    first.executor.terminate()
    [call_id] = stand_in_starts(dispatch)
    row = task_instance("held-adopted", f"{dispatch}/{call_id}", queued_by_job_id=first.executor.job_id)
    assert second.executor.try_adopt_task_instances([row]) == []
    assert second.executor.slots_occupied == 1
    release("held-adopted")
    second.until(lambda: second.ended("held-adopted"))
    assert second.events["held-adopted"][-1] == SUCCESS
    assert stand_in_starts(dispatch) == [call_id]
    assert second.executor.slots_occupied == 0


@pytest.mark.usefixtures("no_database")
def test_an_end_that_came_while_nobody_listened_is_found_at_adoption(new_loop: Callable[..., Any]) -> None:
    first, second = new_loop(), new_loop()
    dispatch = first.queue("ok-unheard")["ok-unheard"]
    first.until(lambda: first.ended("ok-unheard"))  # took the event, and dies before Airflow hears of it
    # Not even the function call's id is in the row: the state Dict has it.
    second.executor.try_adopt_task_instances([task_instance("ok-unheard", dispatch)])
    second.until(lambda: second.ended("ok-unheard"))
    assert second.events["ok-unheard"][-1] == SUCCESS


def test_ending_lets_calls_on_their_way_arrive(loop: Any, state_dict: Any) -> None:
    tasks = [f"ok-last-{n}" for n in range(50)]
    dispatches = loop.queue(*tasks)
    loop.beat()  # 32 of them are taken, the rest has no slot
    taken = [key.task_id for key in loop.executor.running]
    loop.executor.end()
    assert len(taken) == 32
    assert all(state_dict.get(names.call_key(dispatches[task])) for task in taken)
    told = {key.task_id for key in loop.executor.get_event_buffer()}
    assert told >= set(taken)


def test_ending_does_not_wait_for_a_modal_that_is_away(loop: Any, modal_server: LocalModal) -> None:
    loop.queue("ok-warm")
    loop.until(lambda: loop.ended("ok-warm"))
    modal_server.stop()
    try:
        loop.queue("ok-never")
        pause = time.monotonic() + 2
        loop.until(lambda: time.monotonic() > pause)
        before = time.monotonic()
        loop.executor.end()
        assert time.monotonic() - before < 30
    finally:
        modal_server.start()
    assert "ok-never" not in loop.events


def test_events_of_other_dispatches_are_dropped(
    loop: Any, settings: pytest.MonkeyPatch, release: Callable[[str], None]
) -> None:
    import modal

    queue = modal.Queue.from_name(names.ResourceNames("stand-in").events_queue)
    partition = names.job_partition(loop.executor.job_id)
    loop.queue("held-mine")
    loop.until(lambda: "held-mine" in loop.events)
    foreign = wire.Completion(str(uuid.uuid4()), wire.TaskKey("d", "held-mine", "r", 1), "failed", "not mine")
    queue.put_many([foreign.to_wire(), {"wire": 99}, "rubbish"], partition=partition)
    loop.until(lambda: loop.executor.counters["foreign_events"] == 1)
    release("held-mine")
    loop.until(lambda: loop.ended("held-mine"))
    assert loop.events["held-mine"][-1] == SUCCESS


@pytest.fixture
def elsewhere(settings: pytest.MonkeyPatch) -> VolumeFiles:
    """This process as an Airflow outside of the environment; the Volume, to put a manifest on."""
    import modal

    settings.delenv("MODALFLOW_SETTINGS")
    resources = names.ResourceNames("stand-in")
    modal.Volume.from_name(resources.volume, create_if_missing=True, version=2).hydrate()
    files = VolumeFiles.open(resources)
    files.remove(names.MANIFEST_PATH)
    return files


def test_elsewhere_tasks_run_once_the_deployment_is_known(
    elsewhere: VolumeFiles, new_loop: Callable[..., Any]
) -> None:
    deployment.write(elsewhere, describe(EnvironmentConfig(connection_string=""), "stand-in"))
    loop = new_loop()
    loop.queue("ok-elsewhere")
    loop.until(lambda: loop.ended("ok-elsewhere"))
    assert loop.events["ok-elsewhere"][-1] == SUCCESS


@pytest.mark.parametrize(
    ("release", "told"),
    [
        (None, "no deployment manifest"),
        (99, "version 99 of the wire format, while the scheduler has 1; redeploy: modalflow create"),
    ],
)
def test_elsewhere_a_deployment_that_does_not_fit_is_told(
    elsewhere: VolumeFiles, new_loop: Callable[..., Any], release: int | None, told: str
) -> None:
    if release is not None:
        manifest = describe(EnvironmentConfig(connection_string=""), "stand-in")
        deployment.write(elsewhere, replace(manifest, wire=release))
    loop = new_loop()
    loop.queue("ok-unfit")
    loop.until(lambda: loop.ended("ok-unfit"))
    state, reason = loop.events["ok-unfit"][-1]
    assert state == TaskInstanceState.FAILED
    assert told in reason

"""What does the worker make of a task call, in a container of a deployed environment?"""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import modal
import pytest

from airflow_provider_modal import airflow_settings, app, names, wire
from airflow_provider_modal.config import EnvironmentConfig, ImageConfig, SchedulerConfig, WorkerProfile
from airflow_provider_modal.executors.task_log import TaskLogs
from airflow_provider_modal.log import reader
from airflow_provider_modal.volume import dag_versions
from airflow_provider_modal.volume.files import VolumeFiles
from airflow_provider_modal.worker import claim
from local_modal.testing import LocalModal, wait_until
from tests.acceptance.recorder import Recorder
from tests.integration.worker.airflow_host import DAGS, AirflowHost, airflow_host, database_of
from tests.support.modal_env import using
from tests.support.wheels import add_wheel

DAG = "worker_dag"
PARTITION = "scheduler"
WHEELS = f"{airflow_settings.DEFAULT_VOLUME_PATH}/wheels"


@dataclass
class Environment:
    """A deployed environment, without scheduler."""

    resources: names.ResourceNames
    host: AirflowHost
    server: LocalModal
    recorder: Recorder

    @property
    def state(self) -> modal.Dict:
        return modal.Dict.from_name(self.resources.state_dict)

    @property
    def events(self) -> modal.Queue:
        return modal.Queue.from_name(self.resources.events_queue)

    @property
    def files(self) -> VolumeFiles:
        return VolumeFiles.open(self.resources)

    def queued(self, task_id: str, **options: Any) -> wire.TaskCall:
        """Queue a task in Airflow's database and return the call for it."""
        run_id = f"run_{secrets.token_hex(4)}"
        workload = self.host.call("queue_task", dag_id=DAG, task_id=task_id, run_id=run_id)
        call = wire.TaskCall(
            dispatch=str(uuid.uuid4()),
            kind="task",
            key=wire.TaskKey(DAG, task_id, run_id, 1),
            workload=workload,
            log_path=json.loads(workload)["log_path"],
            partition=PARTITION,
            timeout=60,
            env={"RECORD": f"tcp:{self.recorder.port}", "GREETING": run_id},
            wakes_scheduler=False,
        )
        return replace(call, **options)

    def other(self, kind: wire.Kind, dispatch: str, item: dict[str, Any]) -> wire.TaskCall:
        """Return the call for a workload that is no task."""
        return wire.TaskCall(
            dispatch=dispatch,
            kind=kind,
            key=None,
            workload=json.dumps(item),
            log_path=item.get("log_path"),
            partition=PARTITION,
            timeout=60,
            env={"RECORD": f"tcp:{self.recorder.port}"},
            wakes_scheduler=False,
        )

    def spawn(self, message: dict[str, Any]) -> modal.FunctionCall[Any]:
        function = modal.Function.from_name(self.resources.app, names.EXECUTE_TASK)
        call: modal.FunctionCall[Any] = function.spawn(message)
        return call

    def row(self, call: wire.TaskCall) -> dict[str, Any]:
        key = call.key
        assert key is not None
        row: dict[str, Any] = self.host.call(
            "task_row", dag_id=key.dag_id, task_id=key.task_id, run_id=key.run_id
        )
        return row

    def log(self, call: wire.TaskCall) -> list[str]:
        return list(reader.read(self.files, DAG, call.key.run_id, call.key.task_id))

    def event(self, call: wire.TaskCall) -> wire.Completion:
        """Return the next completion event, which must be this call's."""
        message = self.events.get(timeout=30, partition=PARTITION)
        assert message is not None
        completion = wire.Completion.from_wire(message)
        assert completion.dispatch == call.dispatch
        return completion


@pytest.fixture(scope="module")
def environment(
    local_modal: LocalModal,
    postgres_url: str,
    _airflow_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Environment]:
    resources = names.ResourceNames(f"worker-{uuid.uuid4().hex[:8]}")
    recorder = Recorder()
    with using(local_modal), database_of(postgres_url, _airflow_template) as url:
        config = EnvironmentConfig(
            url,
            scheduler=SchedulerConfig(interval_seconds=36000),
            image=ImageConfig(env={"UV_NO_INDEX": "1", "UV_FIND_LINKS": WHEELS}),
            workers={"default": WorkerProfile(max_containers=1, scaledown_window=120)},
        )
        modal.Dict.from_name(resources.state_dict, create_if_missing=True).hydrate()
        modal.Queue.from_name(resources.events_queue, create_if_missing=True).hydrate()
        modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
        modal.Secret.objects.create(
            resources.secrets, airflow_settings.secret_environment(config, resources.env)
        )
        files = VolumeFiles.open(resources)
        code = {"greeter/__init__.py": "", "greeter/cli.py": "def main():\n    print('hello')\n"}
        commands = {"greet": "greeter.cli:main"}
        wheel = add_wheel(tmp_path_factory.mktemp("wheels"), "greeter", "1.0", code, commands=commands)
        files.write(f"wheels/{wheel.name}", wheel)
        files.write(f"{names.DAGS_FOLDER}/worker_dag.py", (DAGS / "worker_dag.py").read_bytes())
        version = dag_versions.snapshot(files)
        app.build_app(config, resources.env).deploy()
        with airflow_host(url, tmp_path_factory.mktemp("dispatch")) as host:
            host.call("add_dags", folder=str(DAGS), version=version.digest)
            yield Environment(resources, host, local_modal, recorder)
    recorder.close()


def test_task_is_run_reported_and_logged(environment: Environment) -> None:
    call = environment.queued("quick")
    spawned = environment.spawn(call.to_wire())
    completion = wire.Completion.from_wire(spawned.get(timeout=120))
    assert (completion.outcome, completion.reason) == ("done", None)
    assert completion.call_id == spawned.object_id
    assert completion.container and completion.container.startswith("ta-")
    assert environment.event(call) == completion
    state = environment.state
    assert wire.Completion.from_wire(state[names.result_key(call.dispatch)]) == completion
    assert wire.Claim.from_wire(state[names.claim_key(call.dispatch)]).phase == "started"
    row = environment.row(call)
    assert (row["state"], row["hostname"]) == ("success", completion.container)
    lines = environment.log(call)
    assert call.dispatch in lines[0] and spawned.object_id in lines[0] and completion.container in lines[0]
    assert any("printed by the task" in line for line in lines)
    assert reader.attempts(environment.files, DAG, call.key.run_id, "quick") == [1]
    assert reader.tasks(environment.files, DAG, call.key.run_id) == [("quick", -1)]


def test_tasks_of_a_warm_container_are_forks_of_one_process(environment: Environment) -> None:
    found = set()
    for _ in range(2):
        call = environment.queued("quick")
        environment.spawn(call.to_wire()).get(timeout=60)
        completion = environment.event(call)
        (record,) = [r for r in environment.recorder.events("started") if r["greeting"] == call.key.run_id]
        found.add((completion.container, record["airflow_at"]))
    assert len(found) == 1


def test_time_limit_stops_the_task_and_says_so(environment: Environment) -> None:
    call = environment.queued("patient", timeout=5, log_lines=5)
    before = len(environment.recorder.events("on_kill"))
    completion = wire.Completion.from_wire(environment.spawn(call.to_wire()).get(timeout=60))
    assert completion.outcome == "failed"
    assert completion.reason is not None and "longer than its limit of 5 s" in completion.reason
    assert "{'timeout': seconds}" in completion.reason and "workers.default.timeout" in completion.reason
    _, tail = completion.reason.split("The last lines of its log:\n")
    assert len(tail.splitlines()) == 5 and "stopped by on_kill" in tail
    assert environment.event(call) == completion
    assert len(environment.recorder.events("on_kill")) == before + 1
    log = "\n".join(environment.log(call))
    assert "the task gets SIGTERM" in log and "stopped by on_kill" in log


def test_task_that_succeeds_after_it_was_told_to_stop_is_done(environment: Environment) -> None:
    call = environment.queued("deaf", timeout=3)
    completion = wire.Completion.from_wire(environment.spawn(call.to_wire()).get(timeout=60))
    assert (completion.outcome, completion.reason) == ("done", None)
    assert environment.event(call) == completion
    assert "the task gets SIGTERM" in "\n".join(environment.log(call))
    assert environment.row(call)["state"] == "success"


def test_container_in_which_nothing_starts_takes_no_more_calls(environment: Environment) -> None:
    call = environment.queued("quick")
    # A log that can't be written, as on a disk that is full.
    workload = json.dumps({**json.loads(call.workload), "log_path": "x" * 300})
    first = wire.Completion.from_wire(
        environment.spawn(replace(call, workload=workload).to_wire()).get(timeout=60)
    )
    assert first.outcome == "not_started" and "too long" in str(first.reason)
    assert environment.event(call) == first
    call = environment.queued("quick")
    second = wire.Completion.from_wire(environment.spawn(call.to_wire()).get(timeout=120))
    assert second.outcome == "done" and second.container != first.container
    assert environment.event(call) == second


@pytest.mark.parametrize("by_airflow", [True, False])
def test_cancelled_call_stops_the_task_and_says_by_whom(environment: Environment, by_airflow: bool) -> None:
    call = environment.queued("patient")
    started, killed = (len(environment.recorder.events(event)) for event in ("started", "on_kill"))
    spawned = environment.spawn(call.to_wire())
    environment.recorder.wait_for("started", started + 1)
    if by_airflow:
        environment.state[names.cancel_key(call.dispatch)] = "the scheduler took it back"
    spawned.cancel()
    environment.recorder.wait_for("on_kill", killed + 1, timeout=30)
    completion = environment.event(call)
    assert completion.outcome == "failed" and str(completion.reason).startswith("cancelled:")
    told = "the scheduler took it back" if by_airflow else "not by Airflow"
    assert told in str(completion.reason) and told in "\n".join(environment.log(call))
    # What a cancelled call raises differs between servers; that it has ended as cancelled does not.
    with pytest.raises((modal.exception.InputCancellation, modal.exception.RemoteError)):
        spawned.get(timeout=30)


def test_task_whose_container_is_lost_is_not_run_twice(environment: Environment) -> None:
    call = environment.queued("patient", memory=4000, log_lines=1, lost_after=6.0)
    started = len(environment.recorder.events("started"))
    spawned = environment.spawn(call.to_wire())
    environment.recorder.wait_for("started", started + 1)
    lost = wait_until(lambda: environment.server.tasks(names.EXECUTE_TASK))[0]["task_id"]
    environment.server.control("kill", task_id=lost)
    completion = wire.Completion.from_wire(spawned.get(timeout=120))
    assert completion.outcome == "failed"
    assert completion.reason is not None and f"container {lost}" in completion.reason
    assert "memory of 4000 MiB" in completion.reason and "{'memory': 8000}" in completion.reason
    assert "'on_container_loss': 'rerun'" in completion.reason
    # What it had written last, as far as it is on the Volume.
    assert call.dispatch in completion.reason.split("The last lines of its log:\n")[1]
    assert completion.container != lost
    assert environment.event(call) == completion
    assert len(environment.recorder.events("started")) == started + 1
    # What the lost container had written is still there, before what its successor found.
    log = environment.log(call)
    assert lost in log[0] or str(completion.container) in log[0]
    assert any("was lost" in line for line in log)
    # A page has the lost container's lines once, whether they were shipped or Modal alone has them.
    logs = TaskLogs(environment.resources)

    def on_page() -> list[str]:
        _, lines = logs.stream(call.key, spawned.object_id, "failed", None)
        return [json.loads(line)["event"].partition("  ")[0].strip() for line in lines or ()]

    once = ("::group::Pre Execute", "Worker startup parse complete")
    wait_until(lambda: set(once) <= set(on_page()), 30, "the lost container's output at Modal")
    assert [on_page().count(event) for event in once] == [1, 1]


def test_container_that_runs_out_of_memory_is_told_with_its_limit(environment: Environment) -> None:
    call = environment.queued("hungry", memory=700, lost_after=6.0)
    function = modal.Function.from_name(environment.resources.app, names.EXECUTE_TASK)
    spawned = function.with_options(memory=(700, 700)).spawn(call.to_wire())
    completion = wire.Completion.from_wire(spawned.get(timeout=150))
    assert completion.outcome == "failed"
    reason = str(completion.reason)
    # Where there are no control groups, nobody in the container can measure.
    assert reason.startswith("out of memory") or "Should the memory of 700 MiB" in reason
    assert "700" in reason and "{'memory': 1400}" in reason
    assert environment.event(call) == completion


def test_preempted_task_is_stopped_and_reported_once(environment: Environment) -> None:
    call = environment.queued("patient")
    started, killed = (len(environment.recorder.events(event)) for event in ("started", "on_kill"))
    spawned = environment.spawn(call.to_wire())
    environment.recorder.wait_for("started", started + 1)
    taken = wait_until(lambda: environment.server.tasks(names.EXECUTE_TASK))[0]["task_id"]
    environment.server.control("kill", task_id=taken, signal="SIGINT")
    environment.recorder.wait_for("on_kill", killed + 1, timeout=30)
    completion = environment.event(call)
    assert completion.outcome == "failed" and str(completion.reason).startswith("preempted:")
    assert completion.container == taken
    # Modal delivers the call again; the next container finds what happened.
    assert wire.Completion.from_wire(spawned.get(timeout=120)) == completion
    assert environment.event(call) == completion
    assert taken not in [task["task_id"] for task in environment.server.tasks(names.EXECUTE_TASK)]
    assert len(environment.recorder.events("started")) == started + 1
    log = "\n".join(environment.log(call))
    assert "preempted:" in log and "stopped by on_kill" in log


def test_what_was_reported_stands_when_modal_delivers_again(environment: Environment) -> None:
    call = environment.queued("quick")
    started = len(environment.recorder.events("started"))
    first = wire.Completion.from_wire(environment.spawn(call.to_wire()).get(timeout=120))
    assert environment.event(call) == first
    # As after a container that was lost between its report and Modal's receipt of it.
    assert wire.Completion.from_wire(environment.spawn(call.to_wire()).get(timeout=30)) == first
    assert environment.event(call) == first
    assert wire.Completion.from_wire(environment.state[names.result_key(call.dispatch)]) == first
    log = "\n".join(environment.log(call))
    assert "reported it" in log and "ERROR" not in log
    assert len(environment.recorder.events("started")) == started + 1


def test_copy_that_airflow_refuses_is_obsolete(environment: Environment) -> None:
    call = environment.queued("quick")
    environment.spawn(call.to_wire()).get(timeout=120)
    environment.event(call)
    other = replace(call, dispatch=str(uuid.uuid4()))
    completion = wire.Completion.from_wire(environment.spawn(other.to_wire()).get(timeout=60))
    assert completion.outcome == "obsolete"
    assert environment.event(other) == completion
    assert environment.row(call)["state"] == "success"


def test_call_of_another_release_is_refused(environment: Environment) -> None:
    call = environment.queued("quick")
    answer = environment.spawn({**call.to_wire(), "wire": 99}).get(timeout=60)
    assert answer["outcome"] == "failed" and "redeploy: modalflow create" in answer["reason"]
    assert "redeploy" in str(environment.event(call).reason)
    answer = environment.spawn({"nonsense": True}).get(timeout=60)
    assert answer["outcome"] == "failed" and "not a versioned message" in answer["reason"]


def test_task_gets_the_packages_that_it_asks_for(environment: Environment) -> None:
    def asked(*requirements: str) -> tuple[wire.TaskCall, wire.Completion]:
        call = environment.queued("greeted", requirements=list(requirements))
        environment.spawn(call.to_wire()).get(timeout=120)
        return call, environment.event(call)

    call, completion = asked("greeter==1.0")
    assert (completion.outcome, completion.reason) == ("done", None)
    (record,) = environment.recorder.events("greeted")
    assert record["said"] == "hello\n" and record["greeter"].startswith(record["venv"])
    assert record["keeps_caches"]
    log = "\n".join(environment.log(call))
    assert "building the virtualenv" in log and "built the virtualenv" in log
    call, completion = asked("greeter == 1.0")
    assert completion.outcome == "done" and "virtualenv" not in "\n".join(environment.log(call))
    # Nothing of it is left in what all tasks of the container share.
    quick = environment.queued("greeted")
    environment.spawn(quick.to_wire()).get(timeout=120)
    environment.event(quick)
    assert "No module named 'greeter'" in "\n".join(environment.log(quick))

    for requirement, told in (
        ("pydantic<2", "Airflow in this image needs pydantic 2"),
        ("absent", "absent was not found"),
    ):
        call, completion = asked(requirement)
        assert completion.outcome == "failed" and told in str(completion.reason)
        assert told in "\n".join(environment.log(call))


def test_missing_dag_version_is_told(environment: Environment) -> None:
    call = environment.queued("quick")
    workload = json.loads(call.workload)
    workload["bundle_info"]["version"] = "0" * 64
    call = replace(call, workload=json.dumps(workload))
    completion = wire.Completion.from_wire(environment.spawn(call.to_wire()).get(timeout=60))
    assert completion.outcome == "failed" and "DAG version 000000000000" in str(completion.reason)
    environment.event(call)
    assert environment.row(call)["state"] == "queued"


@pytest.mark.parametrize(("text", "outcome"), [("late", "done"), ("fail", "failed")])
def test_callback_is_run_and_reported(environment: Environment, text: str, outcome: str) -> None:
    item = {
        "token": "",
        "dag_rel_path": "worker_dag.py",
        "bundle_info": {"name": names.BUNDLE_NAME, "version": None},
        "log_path": f"executor_callbacks/{DAG}/run/{text}",
        "callback": {
            "id": str(uuid.uuid4()),
            "fetch_method": "import_path",
            "data": {"path": "worker_dag.called_back", "kwargs": {"text": text}},
        },
        "type": "ExecuteCallback",
    }
    call = environment.other("callback", item["callback"]["id"], item)  # type: ignore[index]
    completion = wire.Completion.from_wire(environment.spawn(call.to_wire()).get(timeout=120))
    assert (completion.outcome, completion.kind, completion.key) == (outcome, "callback", None)
    assert environment.event(call) == completion
    assert [r["text"] for r in environment.recorder.events("called_back")].count(text) == 1
    if outcome == "failed":
        assert "worker_dag.called_back failed" in str(completion.reason)
    logs = environment.files.list(f"{names.LOGS_FOLDER}/executor_callbacks/{DAG}/run")
    assert any(f"/{text}" in entry.path for entry in logs)


@pytest.mark.parametrize(
    ("path", "state", "told"), [("/tmp", "success", ""), ("/no/such/folder", "failed", "does not exist")]
)
def test_connection_is_tested_and_airflow_told(
    environment: Environment, path: str, state: str, told: str
) -> None:
    item = environment.host.call("queue_connection_test", conn_type="fs", extra=json.dumps({"path": path}))
    test_id = json.loads(item)["connection_test_id"]
    call = environment.other("connection_test", test_id, json.loads(item))
    completion = wire.Completion.from_wire(environment.spawn(call.to_wire()).get(timeout=120))
    assert (completion.outcome, completion.reason) == ("done", None)
    assert environment.event(call) == completion
    row = environment.host.call("connection_test_row", test_id=test_id)
    assert row["state"] == state and told in str(row["message"])


def test_connection_test_that_airflow_does_not_know_has_a_reason(environment: Environment) -> None:
    test_id = str(uuid.uuid4())
    item = {"token": "", "connection_test_id": test_id, "connection_id": "c", "timeout": 5}
    call = environment.other("connection_test", test_id, {**item, "type": "TestConnection"})
    completion = wire.Completion.from_wire(environment.spawn(call.to_wire()).get(timeout=120))
    assert completion.outcome == "failed" and "could not be tested" in str(completion.reason)
    assert environment.event(call) == completion


def test_claims_in_a_real_dict(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    # Renewals often, and silence is soon a loss; in the end nobody renews.
    monkeypatch.setattr(claim, "BEATS_UNTIL_LOST", 20)
    state = environment.state
    call = environment.queued("quick", lost_after=2.0)
    first = claim.claim(state, call, "one", "ta-1")
    assert first.run and first.claim.deliveries == 1
    assert claim.claim(state, call, "one", "ta-1").run
    second = claim.claim(state, call, "two", "ta-2")
    assert second.run and second.claim.deliveries == 2
    with claim.started(state, call, second.claim):
        found = wire.Claim.from_wire(state[names.claim_key(call.dispatch)])
        assert (found.token, found.phase, found.container) == ("two", "started", "ta-2")
        redelivered = claim.claim(state, call, "three", "ta-3")
        assert not redelivered.run and redelivered.obsolete
    third = claim.claim(state, call, "three", "ta-3")
    assert not third.run and not third.obsolete and third.lost_container == "ta-2"
    again = claim.claim(state, replace(call, on_container_loss="rerun"), "three", "ta-3")
    assert again.run and again.claim.deliveries == 3 and again.lost_container == "ta-2"

"""What ``clean`` removes of a Volume, by what a real database of Airflow says of its runs."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

import modal
import pytest

from airflow_provider_modal import airflow_settings, names
from airflow_provider_modal.config import EnvironmentConfig
from airflow_provider_modal.control import operations
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.log.segments import segment_path, segment_prefix, task_log
from airflow_provider_modal.names import ResourceNames
from airflow_provider_modal.retention.found import Found, Kind, Policy
from airflow_provider_modal.retention.kinds import KINDS, Environment
from airflow_provider_modal.volume import dag_tree, dag_versions
from airflow_provider_modal.volume.dag_lock import DagTreeLock, TreeBusyError
from airflow_provider_modal.volume.dag_tree import FILES_FOLDER
from airflow_provider_modal.volume.dag_versions import VERSIONS_FOLDER, DagVersion
from airflow_provider_modal.volume.files import VolumeFiles
from airflow_provider_modal.volume.paths import safe_path
from airflow_provider_modal.wire import TaskKey
from local_modal.testing import LocalModal
from tests.support.airflow_children import ENV, AirflowChildren, trigger_run
from tests.support.modal_env import using

DAY = 86_400.0
DAG_ID = "d" * 230  # too long for a path segment as it is
DAG = f"""
from airflow.sdk import DAG
from airflow.providers.standard.operators.empty import EmptyOperator
with DAG("{DAG_ID}", schedule=None):
    EmptyOperator(task_id="t")
"""


class Children:
    """A zygote whose children use the test's database."""

    def __init__(self, children: AirflowChildren) -> None:
        self._children = children

    def spawn(self, target: str, args: Any, env: Any = None) -> Any:
        return self._children.spawn(target, env, **args)


class World:
    """A database, a Volume, and a look at both."""

    def __init__(self, children: AirflowChildren) -> None:
        resources = ResourceNames(f"clean-{secrets.token_hex(4)}")
        modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
        modal.Dict.from_name(resources.state_dict, create_if_missing=True).hydrate()
        self.children = children
        self.files = VolumeFiles.open(resources)
        self.lock = DagTreeLock.open(resources)
        self.asked = 0

    def ask(self, **arguments: Any) -> Any:
        self.asked += 1
        answer = operations.handle(Children(self.children), "clean.judge", arguments)  # type: ignore[arg-type]
        assert answer["ok"], answer
        return answer["result"]

    def kind(self, name: str, *, older_than: float = DAY, keep: int = 1, now: float | None = None) -> Kind:
        policy = Policy(older_than, keep, now or time.time())
        return KINDS[name](Environment(self.files, self.ask, policy, self.lock))

    def runs(self) -> None:
        """Parse a DAG and make runs that ended long ago, ended just now, and did not end."""
        self.children.parse({"d.py": DAG, "fresh.py": DAG.replace(DAG_ID, "fresh")})
        for run_id in ("old", "recent", "live", "busy", "with.slash"):
            trigger_run(self.children, DAG_ID, run_id)
        trigger_run(self.children, "fresh", "with.slash")
        # Allowed by [scheduler] allowed_run_id_pattern only.
        self.children.sql("DELETE FROM task_instance WHERE run_id = 'with.slash'")
        self.children.sql("UPDATE dag_run SET run_id = 'with/slash' WHERE run_id = 'with.slash'")
        ended = "UPDATE dag_run SET state = %s, end_date = now() - %s * interval '1 day' WHERE run_id = %s"
        for run_id, days in (("old", 2), ("recent", 0), ("busy", 2)):
            self.children.sql(ended, "success", days, run_id)
        self.children.sql("UPDATE task_instance SET state = 'success'")
        self.children.sql("UPDATE task_instance SET state = 'running' WHERE run_id = 'busy'")

    def left(self, folder: str) -> list[str]:
        return [entry.path for entry in self.files.list(folder, recursive=True) if entry.is_file]


@pytest.fixture
def world(
    local_modal: LocalModal, airflow_children: AirflowChildren, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    config = EnvironmentConfig(connection_string=airflow_children.url)
    for name, value in airflow_settings.function_environment(config, ENV, "control").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(airflow_settings.CONNECTION, airflow_children.url)
    with using(local_modal):
        yield World(airflow_children)


def clean(kind: Kind) -> tuple[Sequence[Found], Sequence[Found]]:
    """Return what was found, and what was removed."""
    found = list(kind.find())
    return found, kind.remove(found)


def test_logs_and_xcoms_go_with_their_runs(world: World) -> None:
    world.runs()
    runs = {"old", "recent", "live", "busy", "with/slash", "gone", "é gone %"}
    logs, values = {}, {}
    for run_id in runs:
        key = TaskKey(dag_id=DAG_ID, task_id="t", run_id=run_id, try_number=1, map_index=-1)
        logs[run_id] = segment_path(segment_prefix(task_log(key), 0.0, "dispatch"), 1)
        values[run_id] = f"{names.XCOM_FOLDER}/{safe_path(DAG_ID, run_id, 't', '-1', 'k')}.1.json"
    for run_id in ("with/slash", "gone"):
        key = TaskKey(dag_id="fresh", task_id="t", run_id=run_id, try_number=1, map_index=-1)
        logs[f"{run_id} of fresh"] = segment_path(segment_prefix(task_log(key), 0.0, "dispatch"), 1)
    callback = f"{names.LOGS_FOLDER}/executor_callbacks/one.log"
    world.files.write_many(dict.fromkeys([*logs.values(), *values.values(), callback], b"12345"))

    found, removed = clean(world.kind("logs"))
    expected = {"old", "gone", "é gone %", "gone of fresh"}
    assert sum(item.size for item in removed) == 5 * len(expected)
    assert list(removed) == list(found)
    assert set(world.left("logs")) == {logs[name] for name in logs.keys() - expected} | {callback}

    found, removed = clean(world.kind("xcom"))
    assert set(world.left("xcom")) == {values[run_id] for run_id in runs - {"gone", "é gone %"}}
    assert {item.because for item in removed} == {"the run is not in the database any more"}

    # A second time there is nothing to do; what is of no run goes by its age.
    assert clean(world.kind("logs")) == ([], [])
    assert [item.path for item in world.kind("logs", now=time.time() + 2 * DAY).find()] == [callback]

    # What comes back to life while a person reads the list stays.
    kind = world.kind("logs", older_than=0)
    doomed = list(kind.find())
    assert [item.path.rpartition("=")[2] for item in doomed if item.folder] == ["recent"]
    world.children.sql("UPDATE dag_run SET state = 'queued' WHERE run_id = 'recent'")
    assert [item for item in kind.remove(doomed) if item.folder] == []
    assert logs["recent"] in world.left("logs")


def test_many_runs_are_asked_about_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_modal.retention.found.JUDGED_TOGETHER", 4)
    world.files.write_many({f"logs/dag_id=x/run_id={number}/task_id=t/a.log": b"" for number in range(10)})
    _, removed = clean(world.kind("logs"))
    assert (len(removed), world.asked) == (10, 6)
    assert world.files.list("logs") == []


def test_versions_go_with_the_contents_that_only_they_have(world: World) -> None:
    world.runs()
    digests: dict[str, str] = {}
    for name in ("run", "task", "old run", "unused", "dag", "bundle", "recent run", "head"):
        world.files.write_many({"dags/own.py": name.encode(), "dags/shared.py": b"shared"})
        digests[name] = dag_versions.snapshot(world.files, clock=lambda: time.time() + 10).digest
    sql = world.children.sql
    sql("UPDATE dag_version SET bundle_version = %s", digests["task"])
    sql("UPDATE dag SET is_stale = true")
    sql("UPDATE dag_run SET bundle_version = NULL")
    for run_id, name in (("live", "run"), ("old", "old run"), ("recent", "recent run")):
        sql("UPDATE dag_run SET bundle_version = %s WHERE run_id = %s", digests[name], run_id)
    sql("UPDATE dag_bundle SET version = %s", digests["bundle"])
    sql("UPDATE dag SET is_stale = false, bundle_version = %s WHERE dag_id = 'fresh'", digests["dag"])
    sql("UPDATE dag_version SET bundle_version = %s WHERE dag_id = 'fresh'", digests["dag"])
    later = time.time() + 3 * DAY
    # The ages of runs are the database's: they did not become older.
    found, removed = clean(world.kind("versions", now=later))

    stay = {"run", "task", "dag", "bundle", "recent run", "head"}
    assert set(world.left(VERSIONS_FOLDER)) == {f"{VERSIONS_FOLDER}/{digests[name]}.json" for name in stay}
    contents = {hashlib.sha256(text.encode()).hexdigest() for text in (*stay, "shared")}
    assert set(world.left(FILES_FOLDER)) == {f"{FILES_FOLDER}/{sha256}" for sha256 in contents}
    assert list(removed) == list(found)
    assert len(removed) == 4
    assert clean(world.kind("versions", now=later)) == ([], [])

    # Within their age, or among the latest, they stay whoever needs them.
    sql("UPDATE dag_run SET bundle_version = NULL")
    assert list(world.kind("versions").find()) == []
    assert list(world.kind("versions", keep=10, now=later).find()) == []


def test_versions_are_cleaned_by_one_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_modal.retention.versions.LOCK_WAIT_SECONDS", 0.0)
    lost = DagVersion.of({"a.py": "0" * 64})
    world.files.write(f"{VERSIONS_FOLDER}/{lost.digest}.json", lost.manifest())
    world.files.write(f"{FILES_FOLDER}/{'1' * 64}", b"of an upload that was interrupted")
    dag_versions.snapshot(world.files)
    kind = world.kind("versions", now=time.time() + 3 * DAY)
    found = list(kind.find())
    assert len(found) == 2
    with world.lock.hold("modalflow dags sync", 20), pytest.raises(TreeBusyError, match="dags sync"):
        kind.remove(found)
    # A change under way needs its version, and while nobody can tell what one needs, no contents go.
    dag_tree.announce(world.files, dag_tree.Change(lost.digest, {}, []))
    assert [item.path for item in kind.remove(found)] == [f"{FILES_FOLDER}/{'1' * 64}"]
    world.files.write(f"{VERSIONS_FOLDER}/{lost.digest}.json", b"{")
    with pytest.raises(ModalflowError, match="damaged"):
        list(kind.find())

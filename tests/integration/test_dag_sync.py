"""``modalflow dags sync`` and a Volume: what is moved, when it switches, and what becomes of a half one."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import modal
import pytest
from click.testing import CliRunner, Result

from airflow_provider_modal import deployment
from airflow_provider_modal.app import describe
from airflow_provider_modal.cli.main import cli
from airflow_provider_modal.config import EnvironmentConfig
from airflow_provider_modal.names import ResourceNames
from airflow_provider_modal.volume import dag_sync, dag_tree, dag_versions
from airflow_provider_modal.volume.dag_lock import DagTreeLock, TreeBusyError
from airflow_provider_modal.volume.dag_tree import FILES_FOLDER
from airflow_provider_modal.volume.dag_versions import DagVersion
from airflow_provider_modal.volume.files import VolumeFiles
from local_modal.testing import LocalModal, wait_until
from tests.support.modal_env import using

MODALFLOW = str(Path(sys.executable).with_name("modalflow"))


class Uploads(VolumeFiles):
    """The real files, with what was written, and a moment to interfere before each upload."""

    def __init__(self, volume: modal.Volume) -> None:
        super().__init__(volume)
        self.written: list[str] = []
        self.before: Callable[[str], None] = lambda path: None

    def write_many(self, files: Mapping[str, bytes | Path]) -> None:
        for path in files:
            self.before(path)
        self.written += files
        super().write_many(files)


class Environment:
    """What the command needs of an environment: Volume, Dict and manifest; nothing is deployed."""

    def __init__(self, server: LocalModal, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.name = f"sync-{secrets.token_hex(4)}"
        resources = ResourceNames(self.name)
        volume = modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
        modal.Dict.from_name(resources.state_dict, create_if_missing=True).hydrate()
        self.files = Uploads(volume)
        self.lock = DagTreeLock.open(resources)
        deployment.write(
            self.files, describe(EnvironmentConfig("postgresql://nobody@nowhere/none"), self.name)
        )

    def put(self, tree: Mapping[str, str | None]) -> None:
        """Change the local folder; None removes a file."""
        for path, text in tree.items():
            place = self.folder / path
            if text is None:
                place.unlink()
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)

    def sync(self, *options: str, code: int = 0, answer: str | None = None) -> Result:
        """Run the command in this process and check its exit code."""
        arguments = ["dags", "sync", str(self.folder), "--env", self.name, *options]
        done = CliRunner().invoke(cli, arguments, prog_name="modalflow", input=answer)
        assert done.exit_code == code, f"{done.exit_code}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *options: str, code: int = 0) -> Any:
        return json.loads(self.sync("--json", *options, code=code).stdout)

    def tree(self) -> dict[str, str]:
        """Return what everybody sees below dags/."""
        entries = [e for e in self.files.list("dags", recursive=True) if e.is_file]
        return {e.path.removeprefix("dags/"): self.files.read(e.path).decode() for e in entries}

    def planned(self, **tree: str) -> tuple[dag_sync.Plan, dict[str, dag_sync.LocalFile]]:
        """Return a plan that makes the tree these files, and the files."""
        self.put({f"{name}.py": text for name, text in tree.items()})
        local = {f"{name}.py": dag_sync.LocalFile.of(self.folder / f"{name}.py") for name in tree}
        return dag_sync.plan(dag_versions.snapshot(self.files).files, local, delete=True), local


@pytest.fixture
def environment(local_modal: LocalModal, tmp_path: Path) -> Iterator[Environment]:
    folder = tmp_path / "project"
    folder.mkdir()
    with using(local_modal):
        yield Environment(local_modal, folder)


def test_a_folder_is_synced_and_synced_again(environment: Environment) -> None:
    environment.put({"dags/a.py": "a", "dags/team/b.py": "b", "plugins/p.py": "p", "include/ü.sql": "q"})
    environment.put({"dags/same.py": "a", "dags/.env": "secret", "README.md": "no"})
    environment.files.write("dags/.local", b"not ours")

    look = environment.json("--dry-run")
    assert look["outcome"] == "planned"
    assert [file["path"] for file in look["added"]] == [
        "a.py",
        "include/ü.sql",
        "plugins/p.py",
        "same.py",
        "team/b.py",
    ]
    assert environment.tree() == {".local": "not ours"}

    first = environment.json()
    assert first["outcome"] == "synced"
    assert (first["bytes"], first["unchanged"], first["kept"]) == (5, 0, [".local"])
    here = {"a.py": "a", "same.py": "a", "team/b.py": "b", "plugins/p.py": "p", "include/ü.sql": "q"}
    assert environment.tree() == {**here, ".local": "not ours"}
    assert dag_versions.snapshot(environment.files).digest == first["version"]

    # What the Volume has got is not moved again, and nothing is where nothing changed.
    environment.files.written.clear()
    assert "unchanged" in environment.sync().stdout
    environment.put({"dags/c.py": "b", "dags/a.py": "A", "dags/same.py": None})
    shown = environment.sync(answer="y\n")
    for line in ("+ c.py (1 byte)", "~ a.py (1 byte)", "- same.py", "1 added, 1 changed, 1 removed, 3 unch"):
        assert line in shown.stdout
    del here["same.py"]
    assert environment.tree() == {**here, "a.py": "A", "c.py": "b", ".local": "not ours"}


def test_removal_is_asked_for_and_never_of_everything(environment: Environment) -> None:
    environment.put({"a.py": "a", "b.py": "b"})
    environment.sync()
    environment.put({"b.py": None})

    assert "nothing was changed" in environment.sync(answer="n\n", code=1).stderr
    assert "give --yes" in environment.sync(answer="", code=2).stderr
    assert environment.json("--no-delete")["kept"] == ["b.py"]
    assert environment.json("--exclude", "b.*")["outcome"] == "unchanged"
    assert environment.json("--yes")["removed"] == ["b.py"]

    environment.put({"a.py": None})
    assert "the right folder" in environment.sync("--yes", code=2).stderr
    environment.put({"other.py": "o"})
    assert environment.json("--dry-run", code=2)["error"]["kind"] == "config"
    assert environment.tree() == {"a.py": "a"}
    assert environment.json("--yes", "--force")["removed"] == ["a.py"]
    assert environment.tree() == {"other.py": "o"}


def test_folders_that_are_none_and_environments_that_are_not_there(environment: Environment) -> None:
    environment.put({"a.py": "a"})
    for arguments, code, says in (
        ([str(environment.folder / "a.py"), "--env", environment.name], 2, "modalflow dags create"),
        ([str(environment.folder / "no"), "--env", environment.name], 2, "does not exist"),
        ([str(environment.folder), "--env", "absent"], 3, "modalflow create"),
    ):
        done = CliRunner().invoke(cli, ["dags", "sync", *arguments], prog_name="modalflow")
        assert (done.exit_code, says in done.stderr) == (code, True), done.stderr


def test_a_file_takes_the_place_of_a_folder_and_the_reverse(environment: Environment) -> None:
    environment.put({"x/a.py": "a", "y": "y", "z.py": "z"})
    environment.sync()
    (environment.folder / "x/a.py").unlink()
    (environment.folder / "x").rmdir()
    environment.put({"x": "now a file", "y": None})
    environment.put({"y/b.py": "b"})

    environment.sync("--yes")

    assert environment.tree() == {"x": "now a file", "y/b.py": "b", "z.py": "z"}


def test_a_large_binary_file_arrives_whole(environment: Environment) -> None:
    content = secrets.token_bytes(1024) * 20_000
    (environment.folder / "model.bin").write_bytes(content)
    environment.put({"a.py": "a"})
    environment.sync()
    assert environment.files.read("dags/model.bin") == content


def test_until_the_switch_the_old_version_counts_and_then_the_new_one(environment: Environment) -> None:
    """Whoever looks at any moment sees one version or the other, as a whole."""
    files = environment.files
    planned, local = environment.planned(a="1", b="1")
    with environment.lock.hold("first", 20) as lease:
        old = dag_sync.carry_out(files, lease, planned, local, largest=0)
    planned, local = environment.planned(a="2", b="2", c="2")
    new = DagVersion.of(planned.target)
    seen: list[tuple[str, str]] = []
    looking = VolumeFiles(modal.Volume.from_name(ResourceNames(environment.name).volume))
    files.before = lambda path: seen.append((path, dag_versions.snapshot(looking).digest))

    with environment.lock.hold("second", 20) as lease:
        dag_sync.carry_out(files, lease, planned, local, largest=0, done=lambda number: files.before("done"))

    switch = [path for path, _ in seen].index(dag_tree.CHANGE_PATH)
    assert {digest for _, digest in seen[: switch + 1]} == {old.digest}
    assert {digest for _, digest in seen[switch + 1 :]} == {new.digest}
    assert dag_versions.current(looking) is None  # until somebody has looked at the whole of it
    assert dag_versions.snapshot(looking).digest == new.digest
    assert environment.tree() == {"a.py": "2", "b.py": "2", "c.py": "2"}


class Died(Exception):
    """Stands for the end of the process at this moment."""


@pytest.mark.parametrize("dies_at", [f"{FILES_FOLDER}/", "dag-versions/", "sync.json", "dags/a.py"])
def test_one_that_dies_leaves_a_whole_version_and_is_completed(
    environment: Environment, dies_at: str
) -> None:
    files = environment.files
    environment.put({"a.py": "1", "b.py": "1"})
    environment.sync()
    old = dag_versions.snapshot(files)
    planned, local = environment.planned(a="2", c="2")

    def die(path: str) -> None:
        if dies_at in path:
            raise Died

    files.before = die
    with pytest.raises(Died), environment.lock.hold("one that dies", 20) as lease:
        dag_sync.carry_out(files, lease, planned, local, largest=0)
    files.before = lambda path: None

    switched = dies_at == "dags/a.py"
    expected = DagVersion.of(planned.target) if switched else old
    assert dag_versions.contents(files) == expected.files
    # The scheduler, which has the lock to itself, also tidies up.
    assert dag_versions.snapshot(files, lock=environment.lock).digest == expected.digest
    assert environment.tree() == ({"a.py": "2", "c.py": "2"} if switched else {"a.py": "1", "b.py": "1"})

    (environment.folder / "b.py").unlink()
    assert environment.json("--yes")["outcome"] == ("unchanged" if switched else "synced")
    assert environment.tree() == {"a.py": "2", "c.py": "2"}


def interrupt(process: subprocess.Popen[str]) -> None:
    """Press Ctrl-C until the process ends: the SDK loses one that comes when a call just has its answer."""
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
        return


def test_ctrl_c_leaves_the_old_version_and_says_so(environment: Environment) -> None:
    environment.put({"a.py": "1"})
    environment.sync()
    environment.put({"a.py": "2"})
    with environment.lock.hold("somebody else", 20):
        waiting = subprocess.Popen(
            [MODALFLOW, "dags", "sync", str(environment.folder), "--env", environment.name],
            env=environment.server.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert waiting.stdout is not None
            for line in waiting.stdout:
                if "1 changed" in line:
                    break
            interrupt(waiting)
            _, told = waiting.communicate(timeout=60)
        finally:
            waiting.kill()
            waiting.wait()
    assert waiting.returncode == 130
    assert "nothing was changed; to do it: modalflow dags sync" in told
    assert environment.tree() == {"a.py": "1"}


def test_two_at_a_time_are_one_after_the_other(environment: Environment, tmp_path: Path) -> None:
    """Whoever comes second finds that its plan is out of date, or that nothing is to be done."""
    environment.put({"a.py": "1", **{f"f{number}.py": str(number) for number in range(20)}})
    results: list[Result] = []

    def sync() -> None:
        arguments = ["dags", "sync", str(environment.folder), "--env", environment.name, "--json"]
        done = subprocess.run(
            [MODALFLOW, *arguments], env=environment.server.env, capture_output=True, text=True, check=False
        )
        results.append(json.loads(done.stdout))

    threads = [threading.Thread(target=sync) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    outcomes = sorted(r.get("outcome") or r["error"]["message"][:40] for r in results)  # type: ignore[attr-defined]
    assert "synced" in outcomes
    assert len(environment.tree()) == 21
    assert dag_tree.read_change(environment.files) is None
    assert environment.json()["outcome"] == "unchanged"


def test_what_is_stored_is_not_switched_to_without_the_lock(environment: Environment) -> None:
    planned, local = environment.planned(a="1")
    state = modal.Dict.from_name(ResourceNames(environment.name).state_dict)
    with environment.lock.hold("held up", 20) as lease:
        state.put("dag-tree", {**lease.entry(), "token": "another"})
        with pytest.raises(TreeBusyError, match="start it again"):
            dag_sync.carry_out(environment.files, lease, planned, local, largest=0)
    assert environment.tree() == {}
    assert state.get("dag-tree")["token"] == "another"


def test_the_lock_is_waited_for_and_taken_from_the_dead(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dag_versions, "LOCK_WAIT_SECONDS", 0.0)
    with environment.lock.hold("the first", 20):
        with pytest.raises(TreeBusyError, match=r"the first on .* is at work"):
            with environment.lock.hold("the second", 0):
                pass
        # The scheduler goes on with what it knows, and without that says why it can't.
        environment.files.write("dags/a.py", b"a")
        with pytest.raises(TreeBusyError):
            dag_versions.snapshot(environment.files, lock=environment.lock)
    known = dag_versions.snapshot(environment.files, lock=environment.lock)
    state = modal.Dict.from_name(ResourceNames(environment.name).state_dict)
    later = DagTreeLock(state, clock=lambda: 10_000_000_000)
    with environment.lock.hold("the first", 20):
        environment.files.write("dags/b.py", b"b")
        assert dag_versions.snapshot(environment.files, lock=environment.lock) == known
        with later.hold("the third", 0) as lease:
            lease.require()
    wait_until(lambda: state.get("dag-tree") is None, 20)


def test_a_file_that_changes_while_it_is_uploaded_is_not_stored(environment: Environment) -> None:
    planned, local = environment.planned(a="1")
    environment.put({"a.py": "2"})
    with (
        environment.lock.hold("one", 20) as lease,
        pytest.raises(dag_sync.ModalflowError, match="changed mean"),
    ):
        dag_sync.carry_out(environment.files, lease, planned, local, largest=0)
    assert environment.tree() == {}


@pytest.mark.parametrize(
    "note", [b"", b"{}", b'{"format": 1, "digest": "x", "put": {"../a": "x"}, "remove": []}']
)
def test_a_damaged_note_is_told(environment: Environment, note: bytes) -> None:
    environment.put({"a.py": "a"})
    environment.files.write(dag_tree.CHANGE_PATH, note)
    assert "is damaged" in environment.sync(code=1).stderr

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import modal
import pytest

from airflow_provider_modal.errors import ModalflowError, NotFoundError
from airflow_provider_modal.volume import dag_copies, dag_versions
from airflow_provider_modal.volume.dag_copies import materialise
from airflow_provider_modal.volume.dag_tree import FILES_FOLDER
from airflow_provider_modal.volume.dag_versions import (
    HEAD_PATH,
    VERSIONS_FOLDER,
    DagVersion,
    TreeKeepsChangingError,
    snapshot,
)
from airflow_provider_modal.volume.files import Entry, VolumeFiles
from local_modal.testing import LocalModal
from tests.support.modal_env import using


class Observed(VolumeFiles):
    """The real files, with a count of what was done to them and a moment to interfere."""

    def __init__(self, volume: modal.Volume, mount: Path | None = None) -> None:
        super().__init__(volume, mount)
        self.did: list[str] = []
        self.after_listing: Callable[[], None] | None = None

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        wanted = list(paths)
        self.did += [f"read {path}" for path in wanted]
        return super().read_many(wanted)

    def fetch(self, paths: Mapping[str, Path], largest: int = 0) -> None:
        self.did += [f"read {path}" for path in paths]
        super().fetch(paths, largest)

    def list(self, path: str, recursive: bool = False) -> list[Entry]:
        self.did.append(f"list {path}")
        entries = super().list(path, recursive)
        if self.after_listing is not None:
            self.after_listing()
        return entries

    def write_many(self, files: Mapping[str, bytes | Path]) -> None:
        self.did += [f"write {path}" for path in files]
        super().write_many(files)


@pytest.fixture(scope="module", autouse=True)
def _modal(local_modal: LocalModal) -> Iterator[None]:
    with using(local_modal):
        yield


@pytest.fixture
def volume() -> modal.Volume:
    name = f"dags-{uuid.uuid4().hex[:8]}"
    return modal.Volume.from_name(name, version=2, create_if_missing=True).hydrate()


@pytest.fixture
def files(volume: modal.Volume) -> Observed:
    return Observed(volume)


@pytest.fixture
def outside(volume: modal.Volume) -> VolumeFiles:
    """What somebody else does to the same Volume."""
    return VolumeFiles(volume)


def later() -> float:
    """A clock by which everything uploaded so far is old."""
    return time.time() + 60


def put(files: VolumeFiles, **tree: str) -> None:
    files.write_many({f"dags/{name}.py": text.encode() for name, text in tree.items()})


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def on_disk(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_version_is_the_content_of_the_tree(files: Observed) -> None:
    put(files, a="A", b="B")
    files.write_many({"dags/team/sub/c.py": b"C", "dags/__pycache__/a.pyc": b"no", "dags/.git/x": b"no"})

    version = snapshot(files)

    assert version == DagVersion.of({"a.py": sha("A"), "b.py": sha("B"), "team/sub/c.py": sha("C")})
    assert dag_versions.head(files) == version.digest


def test_before_the_first_snapshot_there_is_no_head(files: Observed) -> None:
    assert dag_versions.head(files) is None


def test_a_volume_without_dags_has_a_version_too(files: Observed, tmp_path: Path) -> None:
    version = snapshot(files)

    assert version == DagVersion.of({})
    assert on_disk(materialise(files, version.digest, tmp_path)) == {}
    assert snapshot(files) == version


def test_a_file_in_place_of_the_folder_is_no_dag(files: Observed) -> None:
    files.write("dags", b"not a folder")

    assert snapshot(files).files == {}


def test_an_unchanged_tree_costs_one_listing_and_one_read(files: Observed) -> None:
    put(files, **{f"d{n}": str(n) for n in range(50)})
    version = snapshot(files, clock=later)

    files.did.clear()
    assert snapshot(files) == version
    assert files.did == [f"read {HEAD_PATH}", "list dags"]


def test_only_what_changed_is_read_and_stored(files: Observed) -> None:
    put(files, a="A", b="B")
    snapshot(files, clock=later)
    put(files, b="BB")

    files.did.clear()
    version = snapshot(files, clock=later)

    assert version.files == {"a.py": sha("A"), "b.py": sha("BB")}
    assert [step for step in files.did if step.startswith("read dags/")] == ["read dags/b.py"]
    assert [step for step in files.did if step.startswith("write")] == [
        f"write {FILES_FOLDER}/{sha('BB')}",
        f"write {VERSIONS_FOLDER}/{version.digest}.json",
        f"write {HEAD_PATH}",
    ]


def test_a_rewrite_of_the_same_size_within_one_tick_is_seen(files: Observed) -> None:
    """Modal's listings have whole seconds, so neither size nor mtime tell."""
    for attempt in range(5):
        put(files, a=f"x={attempt}")
        assert snapshot(files).files == {"a.py": sha(f"x={attempt}")}


def test_a_fresh_file_is_read_again_until_its_mtime_is_certain(files: Observed) -> None:
    put(files, a="A")
    snapshot(files)

    files.did.clear()
    snapshot(files, clock=later)
    assert "read dags/a.py" in files.did
    assert [step for step in files.did if step.startswith("write")] == [f"write {HEAD_PATH}"]

    files.did.clear()
    snapshot(files)
    assert "read dags/a.py" not in files.did


def test_a_removed_and_a_renamed_file_make_a_new_version(files: Observed) -> None:
    put(files, a="A", b="B")
    first = snapshot(files, clock=later)
    files.remove("dags/b.py")
    second = snapshot(files, clock=later)
    put(files, c="A")
    files.remove("dags/a.py")
    third = snapshot(files, clock=later)

    assert second.files == {"a.py": sha("A")}
    assert third.files == {"c.py": sha("A")}
    assert len({first.digest, second.digest, third.digest}) == 3


def test_going_back_to_old_content_is_going_back_to_the_old_version(files: Observed) -> None:
    put(files, a="A")
    first = snapshot(files)
    put(files, a="B")
    snapshot(files)
    put(files, a="A")

    assert snapshot(files) == first


def test_a_file_that_vanishes_after_the_listing_leads_to_another_attempt(
    files: Observed, outside: VolumeFiles
) -> None:
    put(files, a="A", b="B")

    def remove_once() -> None:
        files.after_listing = None
        outside.remove("dags/b.py")

    files.after_listing = remove_once

    assert snapshot(files).files == {"a.py": sha("A")}


def test_an_upload_during_the_snapshot_is_never_half_in_a_version(
    files: Observed, outside: VolumeFiles
) -> None:
    put(files, a="old", b="old")

    def upload_once() -> None:
        files.after_listing = None
        put(outside, a="newer", b="newer")

    files.after_listing = upload_once

    assert set(snapshot(files).files.values()) == {sha("newer")}


def test_the_current_version_is_known_until_something_changes(
    files: Observed, outside: VolumeFiles, volume: modal.Volume, local_modal: LocalModal, tmp_path: Path
) -> None:
    assert dag_versions.current(outside) == dag_versions.DagVersion.of({}).digest
    outside.write("dags/a.py", b"1")
    assert dag_versions.current(outside) is None
    version = dag_versions.snapshot(files)
    assert dag_versions.current(outside) == version.digest
    outside.write("dags/a.py", b"22")
    assert dag_versions.current(outside) is None
    outside.remove("dags/a.py")
    assert dag_versions.current(outside) is None
    (tmp_path / "by_hand.py").write_text("b")
    put_by_hand = ["volume", "put", str(volume.name), str(tmp_path / "by_hand.py"), "dags/"]
    subprocess.run([sys.executable, "-m", "modal", *put_by_hand], env=local_modal.env, check=True)
    assert snapshot(files).files == {"by_hand.py": sha("b")}


def test_a_tree_that_never_holds_still_is_told(files: Observed, outside: VolumeFiles) -> None:
    put(files, a="A")
    files.after_listing = lambda: put(outside, a=f"{'A' * (len(files.did) + 2)}")

    with pytest.raises(TreeKeepsChangingError, match="wait until the upload has ended"):
        snapshot(files)
    assert dag_versions.head(outside) is None


def test_an_empty_listing_is_only_believed_twice(files: Observed) -> None:
    put(files, a="A")
    snapshot(files)
    files.remove("dags/a.py")

    files.did.clear()
    assert snapshot(files).files == {}
    assert files.did.count("list dags") >= 2


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"format": 99}', b'{"format": 1, "digest": 1}'])
def test_a_head_that_is_not_ours_is_replaced(files: Observed, content: bytes) -> None:
    put(files, a="A")
    files.write(HEAD_PATH, content)

    version = snapshot(files)

    assert version.files == {"a.py": sha("A")}
    assert dag_versions.head(files) == version.digest


def test_a_version_is_materialised_with_its_layout(files: Observed, tmp_path: Path) -> None:
    files.write_many({"dags/a.py": b"A", "dags/team/sub/b.py": b"B", "dags/.airflowignore": b"skip"})
    version = snapshot(files)

    folder = materialise(files, version.digest, tmp_path)

    assert folder == dag_copies.local_path(tmp_path, version.digest)
    assert on_disk(folder) == {"a.py": "A", "team/sub/b.py": "B", ".airflowignore": "skip"}


def test_an_old_version_stays_available(files: Observed, tmp_path: Path) -> None:
    put(files, a="A")
    first = snapshot(files)
    put(files, a="B")
    second = snapshot(files)

    assert on_disk(materialise(files, first.digest, tmp_path)) == {"a.py": "A"}
    assert on_disk(materialise(files, second.digest, tmp_path)) == {"a.py": "B"}


def test_what_is_there_already_needs_no_modal(files: Observed, tmp_path: Path) -> None:
    put(files, a="A")
    digest = snapshot(files).digest
    materialise(files, digest, tmp_path)

    files.did.clear()
    materialise(files, digest, tmp_path)
    assert files.did == []


def test_files_come_from_the_mount_where_it_has_them_whole(volume: modal.Volume, tmp_path: Path) -> None:
    mount, root = tmp_path / "mount", tmp_path / "root"
    files = Observed(volume, mount)
    put(files, a="A", b="B", c="C")
    version = snapshot(files)
    (mount / FILES_FOLDER).mkdir(parents=True)
    (mount / FILES_FOLDER / sha("A")).write_text("A")
    (mount / FILES_FOLDER / sha("B")).write_text("overwritten by a task")

    files.did.clear()
    assert on_disk(materialise(files, version.digest, root)) == {"a.py": "A", "b.py": "B", "c.py": "C"}
    assert f"read {FILES_FOLDER}/{sha('A')}" not in files.did


def test_what_a_dead_process_left_half_done_does_not_stay(files: Observed, tmp_path: Path) -> None:
    put(files, a="A")
    digest = snapshot(files).digest
    half = tmp_path / f".{digest}.partial"
    half.mkdir()
    (half / "half.py").write_text("x")

    assert on_disk(materialise(files, digest, tmp_path)) == {"a.py": "A"}


def test_concurrent_callers_get_one_complete_folder(
    files: Observed, volume: modal.Volume, tmp_path: Path, local_modal: LocalModal
) -> None:
    put(files, **{f"d{n}": str(n) for n in range(40)})
    digest = snapshot(files).digest
    files.did.clear()
    seen: list[int] = []
    code = (
        "import modal, sys, pathlib\n"
        "from airflow_provider_modal.volume import dag_copies, files\n"
        "f = files.VolumeFiles(modal.Volume.from_name(sys.argv[1]))\n"
        "print(len(list(dag_copies.materialise(f, sys.argv[2], pathlib.Path(sys.argv[3])).iterdir())))"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(volume.name), digest, str(tmp_path)],
        env=local_modal.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    threads = [
        threading.Thread(
            target=lambda: seen.append(len(list(materialise(files, digest, tmp_path).iterdir())))
        )
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    output, _ = other.communicate(timeout=60)

    assert seen == [40] * 6
    assert output.strip() == "40"
    assert files.did.count(f"read {VERSIONS_FOLDER}/{digest}.json") <= 1


def test_a_version_that_is_not_there_is_told(files: Observed, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not on the Volume"):
        materialise(files, "0" * 64, tmp_path)
    assert not dag_copies.local_path(tmp_path, "0" * 64).exists()


def test_a_damaged_file_is_named_and_nothing_appears(files: Observed, tmp_path: Path) -> None:
    put(files, a="A")
    digest = snapshot(files).digest
    files.write(f"{FILES_FOLDER}/{sha('A')}", b"something else")

    with pytest.raises(ModalflowError, match=r"dags/a\.py .* damaged"):
        materialise(files, digest, tmp_path)
    assert not dag_copies.local_path(tmp_path, digest).exists()


@pytest.mark.parametrize("path", ["../evil.py", "/tmp/evil.py", "a/../../evil.py", ""])
def test_a_hostile_version_writes_nothing_outside(files: Observed, tmp_path: Path, path: str) -> None:
    version = DagVersion.of({path: sha("A")})
    files.write_many(
        {
            f"{FILES_FOLDER}/{sha('A')}": b"A",
            f"{VERSIONS_FOLDER}/{version.digest}.json": json.dumps(
                {"format": 1, "files": version.files}
            ).encode(),
        }
    )
    root = tmp_path / "deep" / "root"

    with pytest.raises(ModalflowError, match="damaged"):
        materialise(files, version.digest, root)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and not p.name.endswith(".lock")]


def test_a_manifest_of_another_content_is_refused(files: Observed, tmp_path: Path) -> None:
    files.write(f"{VERSIONS_FOLDER}/{'1' * 64}.json", b'{"format": 1, "files": {}}')

    with pytest.raises(ModalflowError, match="damaged"):
        materialise(files, "1" * 64, tmp_path)

"""Volumes mounted in containers: snapshots, commits and reloads as Modal documents them
(`modal/volume.py`)."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import modal
import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import MODES, deploy
from tests.integration.local_modal.sdk import connected, unique

Container = Callable[..., Any]


@pytest.fixture(scope="module", params=MODES)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[LocalModal, modal.Client]]:
    """Both kinds of server with the app deployed."""
    server: LocalModal = request.getfixturevalue(f"{request.param}_server")
    if server.mode != request.param:
        if os.environ.get("CI"):
            pytest.fail("namespaces are needed in CI")
        pytest.skip("namespaces are not available here")
    deploy(server, "data_mounts")
    with connected(server) as sdk:
        yield server, sdk


@pytest.fixture
def inside(served: tuple[LocalModal, modal.Client]) -> Container:
    """Runs code in the container of one of the app's functions; `directory` is new and in the volume's
    version."""
    directory = unique("dir")

    def run(function_name: str, code: str, **values: Any) -> Any:
        function = modal.Function.from_name("data-mounts", function_name, client=served[1])
        return function.remote(code, {"directory": directory, **values})

    run("one", "shared.reload(); (vol / directory).mkdir(); shared.commit()")
    for name in ("one", "two"):
        run(name, "shared.reload()")
    return run


@pytest.fixture
def volume(served: tuple[LocalModal, modal.Client]) -> modal.Volume:
    return modal.Volume.from_name("data-shared", client=served[1])


def write(name: str, text: str) -> str:
    return f"(vol / directory / {name!r}).write_text({text!r})"


def look(name: str) -> str:
    return f"path = vol / directory / {name!r}\nresult = path.read_text() if path.exists() else None"


def test_writes_are_seen_elsewhere_after_commit_and_reload_only(inside: Container) -> None:
    inside("one", write("f", "x"))
    inside("two", "shared.reload()")
    assert inside("two", look("f")) is None
    inside("one", "shared.commit()")
    assert inside("two", look("f")) is None
    inside("two", "shared.reload()")
    assert inside("two", look("f")) == "x"


def test_a_commit_reloads(inside: Container) -> None:
    inside("one", write("f", "x") + "\nshared.commit()")
    inside("two", "shared.commit()")
    assert inside("two", look("f")) == "x"


def test_different_files_merge_and_the_last_commit_of_a_file_wins(inside: Container) -> None:
    inside("one", write("mine", "1") + "\n" + write("both", "one"))
    inside("two", write("yours", "2") + "\n" + write("both", "two"))
    inside("two", "shared.commit()")
    inside("one", "shared.commit()")
    inside("two", "shared.reload()")
    for name in ("one", "two"):
        assert inside(name, look("mine")) == "1"
        assert inside(name, look("yours")) == "2"
        assert inside(name, look("both")) == "one"


def test_a_client_sees_commits_at_once_and_containers_see_uploads_after_a_reload(
    inside: Container, volume: modal.Volume
) -> None:
    directory = inside("one", "result = directory")
    inside("one", write("from-container", "x") + "\nshared.commit()")
    assert b"".join(volume.read_file(f"{directory}/from-container")) == b"x"
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"y"), f"{directory}/from-client")
    assert inside("one", look("from-client")) is None
    inside("one", "shared.reload()")
    assert inside("one", look("from-client")) == "y"
    volume.remove_file(directory, recursive=True)
    assert inside("one", look("from-client")) == "y"
    inside("one", "shared.reload()")
    assert inside("one", "result = (vol / directory).exists()") is False


def test_a_reload_commits_what_is_pending(inside: Container) -> None:
    inside("one", write("pending", "x") + "\nshared.reload()")
    inside("two", "shared.reload()")
    assert inside("two", look("pending")) == "x"


def test_an_open_file_prevents_a_reload_and_not_a_commit(inside: Container) -> None:
    held = "held['f'] = (vol / directory / 'f').open('w'); held['f'].write('half'); held['f'].flush()"
    inside("one", held)
    try:
        with pytest.raises(RuntimeError, match=r"there are open files preventing the operation.*/f is open"):
            inside("one", "shared.reload()")
        # A commit reloads, too, so it publishes the changes and fails then.
        with pytest.raises(RuntimeError, match="there are open files preventing the operation"):
            inside("one", "shared.commit()")
    finally:
        inside("one", "held.pop('f').close()")
    inside("one", "shared.reload()")
    inside("two", "shared.reload()")
    assert inside("two", look("f")) == "half"


@pytest.mark.parametrize(
    ("take", "leave"),
    [
        ("held['cwd'] = os.getcwd(); os.chdir(vol / directory)", "os.chdir(held.pop('cwd'))"),
        (
            "held['child'] = subprocess.Popen(['sleep', '600'], cwd=vol / directory)",
            "child = held.pop('child'); child.kill(); child.wait()",
        ),
    ],
    ids=["own", "child"],
)
def test_a_working_directory_prevents_a_reload(inside: Container, take: str, leave: str) -> None:
    inside("one", take)
    try:
        with pytest.raises(RuntimeError, match=r"there are open files.*working directory"):
            inside("one", "shared.reload()")
    finally:
        inside("one", leave)
    inside("one", "shared.reload()")


def test_one_container_s_open_file_does_not_disturb_another(inside: Container) -> None:
    inside("one", "held['f'] = (vol / directory / 'f').open('w')")
    try:
        inside("two", "shared.reload()")
    finally:
        inside("one", "held.pop('f').close()")


def test_a_sub_process_commits_for_its_container(inside: Container) -> None:
    code = "import modal\nvolume = modal.Volume.from_name('data-shared')\nvolume.commit()\n"
    inside("one", write("f", "x") + f"\nsubprocess.run([sys.executable, '-c', {code!r}], check=True)")
    inside("two", "shared.reload()")
    assert inside("two", look("f")) == "x"


def test_a_container_commits_when_it_ends(inside: Container) -> None:
    inside("brief", write("f", "at the end"))

    def seen() -> bool:
        inside("two", "shared.reload()")
        return bool(inside("two", look("f")) == "at the end")

    wait_until(seen)


def test_what_a_killed_container_has_not_committed_is_lost(
    served: tuple[LocalModal, modal.Client], inside: Container
) -> None:
    server, _ = served
    inside("one", write("committed", "x") + "\nshared.commit()\n" + write("lost", "y"))
    inside("one", write("committed", "changed"))
    before = inside("one", "result = os.environ['MODAL_TASK_ID']")
    server.control("kill", function_name="one", app_name="data-mounts")
    wait_until(lambda: before not in [task["task_id"] for task in server.tasks("one")])
    assert inside("one", "result = os.environ['MODAL_TASK_ID']") != before
    assert inside("one", look("lost")) is None
    assert inside("one", look("committed")) == "x"


def test_a_container_that_is_interrupted_commits(
    served: tuple[LocalModal, modal.Client], inside: Container
) -> None:
    server, _ = served
    inside("one", write("pending", "x"))
    server.control("kill", function_name="one", app_name="data-mounts", signal="SIGINT")

    def seen() -> bool:
        inside("two", "shared.reload()")
        return bool(inside("two", look("pending")) == "x")

    wait_until(seen)


def test_a_read_only_mount(served: tuple[LocalModal, modal.Client], inside: Container) -> None:
    inside("one", write("f", "x") + "\nshared.commit()")
    inside("read_only", "shared.reload()")
    assert inside("read_only", look("f")) == "x"
    if served[0].mode == "isolated":
        with pytest.raises(OSError, match="Read-only file system"):
            inside("read_only", write("g", "y"))
    else:
        inside("read_only", write("g", "y") + "\nshared.commit()")
    inside("two", "shared.reload()")
    assert inside("two", look("g")) is None


def test_a_sub_path_is_created_and_is_all_that_is_mounted(inside: Container, volume: modal.Volume) -> None:
    directory = inside("part", "result = directory")
    assert inside("part", "result = sorted(os.listdir(part))") == []
    inside("part", "(part / directory).write_text('x'); shared.commit()")
    assert b"".join(volume.read_file(f"parts/mine/{directory}")) == b"x"
    volume.remove_file(f"parts/mine/{directory}")
    inside("part", "shared.reload()")
    assert inside("part", "result = os.listdir(part)") == []


def test_volumes_of_version_1_are_mounted_alike(
    served: tuple[LocalModal, modal.Client], inside: Container
) -> None:
    legacy = modal.Volume.from_name("data-legacy", client=served[1])
    directory = inside("part", "result = directory")
    with legacy.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"uploaded"), f"{directory}/up")
    inside("part", "legacy.reload()")
    assert inside("part", "result = (legacy_path / directory / 'up').read_text()") == "uploaded"
    inside("part", "(legacy_path / directory / 'down').write_text('written'); legacy.commit()")
    assert b"".join(legacy.read_file(f"{directory}/down")) == b"written"


def test_a_volume_that_is_not_mounted_can_not_be_committed(inside: Container) -> None:
    with pytest.raises(RuntimeError, match="is not mounted in the container"):
        inside("one", "legacy.commit()")


def test_modes_links_and_directories_travel(inside: Container) -> None:
    inside(
        "one",
        "d = vol / directory\n"
        "(d / 'tool').write_text('#!'); (d / 'tool').chmod(0o755)\n"
        "(d / 'link').symlink_to('tool'); (d / 'empty').mkdir()\n"
        "os.utime(d / 'tool', (1600000000, 1600000000)); shared.commit()",
    )
    inside("two", "shared.reload()")
    found = inside(
        "two",
        "d = vol / directory\n"
        "status = (d / 'tool').stat()\n"
        "result = [status.st_mode & 0o777, status.st_mtime, os.readlink(d / 'link'), (d / 'empty').is_dir()]",
    )
    assert found == [0o755, 1_600_000_000, "tool", True]

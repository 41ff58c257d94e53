"""What isolated containers see of the machine: what an image would have, and nothing else."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_modal import launcher
from local_modal.testing import LocalModal
from tests.integration.local_modal.conftest import client, deploy

pytestmark = pytest.mark.one_sdk

CHECKOUT = Path(__file__).parents[3]
INTERPRETER = Path(os.environ.get("LOCAL_MODAL_PYTHON", sys.executable))
ROOT = {
    *("__modal", "dev", "pkg", "proc", "root", "tmp", "var"),
    *launcher.SYSTEM_DIRECTORIES,
    *launcher.EMPTY_DIRECTORIES,
    *(path.parts[1] for path in (INTERPRETER, INTERPRETER.resolve())),
}
"""All that may be there; an interpreter elsewhere is there with the folders that lead to it."""
DANGEROUS = sum(1 << number for number in (2, 12, 16, 17, 19, 21, 22, 25, 27))
"""To search directories by handle, to set up networks, load modules, access hardware, trace, mount, boot, set
the clock, make devices.
"""
LOOK = "result = f('look', 'surroundings').remote(paths)"


@pytest.fixture(scope="module")
def shared_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=Path.home(), prefix="local-modal-share-") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def surroundings(shared_directory: Path) -> Iterator[LocalModal]:
    """Each container serves one input, so that the second look is another container's."""
    with LocalModal(arguments=["--fresh-monotonic", "--share", str(shared_directory)]) as server:
        if server.mode != "isolated":
            if os.environ.get("CI"):
                pytest.fail("namespaces are needed in CI")
            pytest.skip("namespaces are not available here")
        deploy(server, "surroundings")
        yield server


def test_a_container_sees_an_image_and_nothing_of_the_host(
    surroundings: LocalModal, shared_directory: Path
) -> None:
    hidden = [str(CHECKOUT / "pyproject.toml"), str(surroundings.state_dir), "/var/log/dpkg.log", "/run/lock"]
    given = {"paths": [*hidden, str(shared_directory)]}
    first = client(surroundings, LOOK, **given)
    surroundings.control("kill", function_name="look")
    second = client(surroundings, LOOK, **given)
    for seen in (first, second):
        assert seen["there"] == [str(shared_directory)]
        assert seen["empty"] == {name: [] for name in seen["empty"]}
        assert set(seen["root"]) <= ROOT and {"usr", "etc", "home"} <= set(seen["root"])
        assert {"null", "ptmx", "shm", "stdout", "urandom"} <= set(seen["devices"]) and len(
            seen["devices"]
        ) < 16
        assert seen["pid"] == 2 and seen["child"].strip() == "2" and seen["terminal"]
        assert seen["writable"] == [] and seen["mounts"] != 0, "the machine can be changed"
        for text in (*seen["capabilities"], seen["child capabilities"].split()[1]):
            assert int(text, 16) & DANGEROUS == 0
        assert seen["ipc"] != os.readlink("/proc/self/ns/ipc")
    assert (shared_directory / "left-behind").read_text() == "x"
    assert f"Containers see {shared_directory} of this machine (--share)" in surroundings.log
    assert not [path for path in ("/dev/shm", "/var/tmp", "/home") if Path(path, "left-behind").exists()]


def test_the_monotonic_clock_begins_near_zero(surroundings: LocalModal) -> None:
    if "the monotonic clock is the host's" in surroundings.log:
        pytest.skip("the kernel has no time namespaces")
    surroundings.control("kill", function_name="look")
    assert client(surroundings, LOOK, paths=[])["monotonic"] < 60

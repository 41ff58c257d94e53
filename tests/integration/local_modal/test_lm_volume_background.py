"""Volumes that are committed in the background, as Modal does every few seconds."""

from __future__ import annotations

from collections.abc import Iterator

import modal
import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import LEAK, deploy
from tests.integration.local_modal.sdk import connected

pytestmark = pytest.mark.one_sdk


@pytest.fixture(scope="module", params=["overlays", "copies"])
def server(request: pytest.FixtureRequest) -> Iterator[LocalModal]:
    arguments = ["--stop-grace", "1", "--background-commits", "0.2"]
    if request.param == "copies":
        arguments.append("--copy-volumes")
    with LocalModal(arguments=arguments, env=LEAK) as started:
        deploy(started, "data_mounts")
        yield started


def test_what_is_written_is_published_unfinished_and_survives_the_container(server: LocalModal) -> None:
    with connected(server) as sdk:
        volume = modal.Volume.from_name("data-shared", client=sdk)

        def run(function_name: str, code: str) -> object:
            return modal.Function.from_name("data-mounts", function_name, client=sdk).remote(code, {})

        def published(path: str, content: bytes) -> bool:
            try:
                return b"".join(volume.read_file(path)) == content
            except FileNotFoundError:
                return False

        run("two", "None")  # mounted before anything is written
        run("read_only", "None")
        run("one", "held['f'] = open(vol / 'f', 'w'); held['f'].write('half'); held['f'].flush()")
        wait_until(lambda: published("f", b"half"))
        run("one", "held['f'].write(' and half'); held['f'].flush()")
        wait_until(lambda: published("f", b"half and half"))
        assert run("two", "result = (vol / 'f').exists()") is False
        run("two", "shared.reload()")
        assert run("two", "result = (vol / 'f').read_text()") == "half and half"

        before = run("one", "result = os.environ['MODAL_TASK_ID']")
        server.control("kill", function_name="one", app_name="data-mounts")
        wait_until(lambda: before not in [task["task_id"] for task in server.tasks("one")])
        assert run("one", "result = (vol / 'f').read_text()") == "half and half"
        run("two", "(vol / 'f').unlink()")
        wait_until(lambda: not published("f", b"half and half"))
        run("part", "(legacy_path / 'g').write_text('version 1')")
        wait_until(lambda: b"g" in [e.path.encode() for e in _legacy(sdk).listdir("/")])


def _legacy(sdk: modal.Client) -> modal.Volume:
    return modal.Volume.from_name("data-legacy", client=sdk)

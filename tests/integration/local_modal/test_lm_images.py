"""Images: what a container gets of its image, and what is said at deployment of what it doesn't get."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from local_modal.testing import LocalModal
from tests.integration.local_modal.conftest import client
from tests.integration.local_modal.sdk import unique

INTERPRETER = os.environ.get("LOCAL_MODAL_PYTHON", sys.executable)
DEPLOY = """
import contextlib, io, warnings
app = modal.App(name)
app.function(image=eval(image), serialized=True, name="look")(look)
try:
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(io.StringIO()) as said:
        warnings.simplefilter("always")
        app.deploy()
    result = " ".join([str(warning.message) for warning in caught] + [said.getvalue()])
except Exception as error:
    result = f"failed: {error}"
"""
NOTHING = "def look(): return None\n"


def deploy(server: LocalModal, image: str, name: str = "", look: str = NOTHING) -> str:
    """Deploy a function `look` with this image; returns what was warned of, or why it failed."""
    said: str = client(server, look + DEPLOY, image=image, name=name or unique("images"))
    return said


def test_packages_that_are_missing_fail_the_build(isolated_server: LocalModal, tmp_path: Path) -> None:
    there = (
        "modal.Image.debian_slim().uv_pip_install('modal>=1', 'protobuf', "
        "index_url='https://user:hush-hush@example.invalid/simple').run_commands('pip install grpclib')"
    )
    assert not deploy(isolated_server, there).startswith("failed")
    assert "https://***@example.invalid" in isolated_server.log and "hush-hush" not in isolated_server.log
    said = deploy(
        isolated_server, "modal.Image.debian_slim().pip_install('modal>1', 'no-such>=2', 'rich==0.1')"
    )
    assert "failed: Image build for im-" in said and "no-such>=2, rich==0.1 (found " in said
    assert f"{INTERPRETER} -m pip install 'no-such>=2' rich==0.1" in said
    assert "--image-python" in said and "--missing-packages warn" in said
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(
        "grpclib\nof-a-file ; python_version > '3'\nof-windows ; sys_platform == 'win32'\n"
    )
    for method in ("pip_install_from_requirements({})", "uv_pip_install(requirements=[{}])"):
        image = f"modal.Image.debian_slim().{method.format(repr(str(requirements)))}"
        said = deploy(isolated_server, image)
        assert "installs of-a-file. " in said
    refused = "modal.Image.debian_slim().run_function(json.dumps)"
    assert "run_function is not supported" in deploy(isolated_server, refused)


def test_another_python_and_missing_packages_may_be_warned_of() -> None:
    other = "3.12" if sys.version_info[:2] != (3, 12) else "3.11"
    with LocalModal(arguments=["--missing-packages", "warn"]) as server:
        said = deploy(server, "modal.Image.debian_slim().pip_install('no-such-package')")
        assert not said.startswith("failed") and "The image installs no-such-package" in said
        for image in (
            f"modal.Image.debian_slim(python_version='{other}')",
            f"modal.Image.from_registry('example/image:1', add_python='{other}')",
            f"modal.Image.from_registry('apache/airflow:3.0.0-python{other}')",
            f"modal.Image.micromamba(python_version='{other}')",
        ):
            said = deploy(server, image)
            assert f"The image has Python {other}, but {INTERPRETER}" in said, image


LOOK = """
def look():
    from pathlib import Path
    texts = [Path(name).read_text() for name in ("renamed.txt", "below/inner.txt", "more.txt")]
    return [*texts, *(os.environ[name] for name in ("A", "B", "C")), sorted(os.listdir())]
"""


def test_a_container_finds_what_its_image_sets_and_copies(server: LocalModal, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner.txt").write_text("inner")
    (tmp_path / "top.txt").write_text("top")
    (tmp_path / "Dockerfile").write_text(
        "FROM python:3.11-slim\n# a comment\nENV A='a b' \\\n    B=2\nWORKDIR /opt/example\n"
        'COPY top.txt /opt/example/renamed.txt\nCOPY folder/ ./below/\nUSER nobody\nENTRYPOINT ["sleep"]\n'
    )
    image = (
        f"modal.Image.from_dockerfile({str(tmp_path / 'Dockerfile')!r}, context_dir={str(tmp_path)!r})"
        ".env({'C': 'c d'})"
        f".add_local_file({str(tmp_path / 'top.txt')!r}, '/opt/example/more.txt', copy=True)"
    )
    name = unique("copied")
    said = deploy(server, image, name, LOOK)
    assert not said.startswith("failed"), said
    assert client(server, "result = f('look', name).remote()", name=name) == [
        *("top", "inner", "top", "a b", "2", "c d"),
        ["below", "more.txt", "renamed.txt"],
    ]
    assert "not executed: USER nobody" in server.log and 'not executed: ENTRYPOINT ["sleep"]' in server.log

"""Virtualenvs on a real Volume, installed by a real uv from a folder of wheels: the two halves of "once"."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import uuid
import venv as virtualenvs
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import modal
import pytest

from airflow_provider_modal import airflow_settings, names
from airflow_provider_modal.errors import ConfigError, ModalflowError, UnreachableError
from airflow_provider_modal.venvs import folder, lease, operator_cache, store
from airflow_provider_modal.venvs.provision import Limits, Venvs
from airflow_provider_modal.volume.files import VolumeFiles
from local_modal.testing import LocalModal, wait_until
from tests.support.modal_env import using
from tests.support.wheels import add_wheel

WANTED = ("greeter",)

# A source distribution whose build says that it has begun, and waits until it may go on, or fail.
BACKEND = """
import os, pathlib, time, zipfile
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    place = pathlib.Path(os.environ["SLOW_PLACE"])
    (place / "began").touch()
    while not (place / "go-on").exists():
        time.sleep(0.05)
    if (place / "fail").exists():
        raise SystemExit("it fails on purpose")
    name = "slow-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        wheel.writestr("slow.py", "")
        wheel.writestr("slow-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: slow\\nVersion: 1.0\\n")
        wheel.writestr("slow-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr("slow-1.0.dist-info/RECORD", "")
    return name
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "slow"
version = "1.0"
"""
BUILDER = """
import modal, os, sys, time
from pathlib import Path
from airflow_provider_modal.venvs.provision import Limits, Venvs
from airflow_provider_modal.volume.files import VolumeFiles
volume, state, root = sys.argv[1:]
venvs = Venvs(
    VolumeFiles(modal.Volume.from_name(volume)), modal.Dict.from_name(state),
    holder="killed", note=print, root=Path(root),
)
venvs.ready(("slow",), os.environ, Limits(time.monotonic() + 300))
"""


@pytest.fixture(scope="module", autouse=True)
def _modal(local_modal: LocalModal) -> Iterator[None]:
    with using(local_modal):
        yield


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheels, and a source distribution that takes its time."""
    path = tmp_path_factory.mktemp("links")
    files = {"greeter/__init__.py": "import tone\n", "greeter/cli.py": "def main():\n    print('hello')\n"}
    add_wheel(path, "greeter", "1.0", files, requires=["tone>=1"], commands={"greet": "greeter.cli:main"})
    add_wheel(path, "tone", "1.2", {"tone.py": ""})
    add_wheel(path, "old", "1.0", {"old.py": ""}, requires=["pydantic<2"])
    with tarfile.open(path / "slow-1.0.tar.gz", "w:gz") as source:
        metadata = "Metadata-Version: 2.2\nName: slow\nVersion: 1.0\n"
        for name, text in (("backend.py", BACKEND), ("pyproject.toml", PYPROJECT), ("PKG-INFO", metadata)):
            member = tarfile.TarInfo(f"slow-1.0/{name}")
            member.size = len(text.encode())
            source.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def environ(links: Path, tmp_path: Path) -> Mapping[str, str]:
    return {**os.environ, "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(links), "SLOW_PLACE": str(tmp_path)}


class World:
    """A Volume and a Dict, and containers that have nothing else in common."""

    def __init__(self, root: Path) -> None:
        self.root = root
        unique = uuid.uuid4().hex[:8]
        self.volume = modal.Volume.from_name(f"venvs-{unique}", version=2, create_if_missing=True).hydrate()
        self.state = modal.Dict.from_name(f"venvs-{unique}", create_if_missing=True).hydrate()
        self.files = VolumeFiles(self.volume)
        self.notes: list[str] = []

    def container(self, name: str, files: VolumeFiles | None = None) -> Venvs:
        def note(level: str, text: str) -> None:
            self.notes.append(f"{name} {level} {text}")

        return Venvs(files or self.files, self.state, holder=name, note=note, root=self.root / name)

    def stored(self) -> list[str]:
        """The paths below ``venvs/`` on the Volume, without what is unique."""
        paths = [entry.path.removeprefix(f"{names.VENVS_FOLDER}/") for entry in self.files.list("venvs")]
        return sorted(path[:3] + ".".join(path.split(".")[1:][-2:]) for path in paths)

    def noted(self, text: str) -> list[str]:
        return [note for note in self.notes if text in note]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.1)
    return World(tmp_path)


def soon() -> Limits:
    return Limits(time.monotonic() + 120)


def test_it_is_built_once_and_taken_from_the_volume_ever_after(
    world: World, environ: Mapping[str, str]
) -> None:
    with ThreadPoolExecutor() as containers:
        made = list(containers.map(lambda name: world.container(name).ready(WANTED, environ, soon()), "abc"))
    assert len(world.noted("info building the virtualenv")) == 1, world.notes
    assert len(world.noted("info took the virtualenv")) == 2, world.notes
    assert len(world.stored()) == 2
    assert len({path.name for path in made}) == 1
    for venv in made:
        # Its interpreter finds its packages and the image's, its command works where it was unpacked.
        code = "import greeter, tone, modal; print(greeter.__file__)"
        run = subprocess.run(
            [str(folder.python(venv)), "-c", code], capture_output=True, text=True, check=True
        )
        assert run.stdout.startswith(str(folder.site_packages(venv)))
        said = subprocess.run([str(venv / "bin" / "greet")], capture_output=True, text=True, check=True)
        assert said.stdout == "hello\n"
        assert not [path for path in venv.parent.iterdir() if path.suffix in (".partial", ".gz")]
    before = len(world.notes)
    assert world.container("a").ready(WANTED, {}, soon()) == made[0]
    assert len(world.notes) == before

    # Somebody damages the archive: whoever unpacks it next says so and makes it anew.
    (archive,) = (entry.path for entry in world.files.list("venvs") if entry.path.endswith(".gz"))
    content = world.files.read(archive)
    world.files.write(archive, content[:-100])
    world.container("d").ready(WANTED, environ, soon())
    assert f"d warning {archive} on the Volume is damaged" in world.noted("damaged")[0]
    world.files.write(archive, content[:-1] + b"!")
    world.container("e").ready(WANTED, environ, soon())
    assert len(world.noted("damaged")) == 1 and world.noted("e info took the virtualenv")

    # What nobody has used for a while goes, and so does what was never named by anything.
    now = time.time()
    assert store.prune(world.files, 86_400, now=now + 3600) == []
    unnamed = store.prune(world.files, 7 * 86_400, now=now + 2 * 86_400, dry_run=True)
    assert [(pruned.path, pruned.because) for pruned in unnamed] == [(archive, "nothing names it")]
    pruned = store.prune(world.files, 7 * 86_400, now=now + 8 * 86_400)
    assert (
        len(pruned) == 3 and pruned[0].path.endswith(".json") and "not used for 8 days" in pruned[0].because
    )
    assert world.stored() == []


def test_what_cannot_be_installed_is_told_to_all_who_wait(world: World, environ: Mapping[str, str]) -> None:
    with pytest.raises(ModalflowError) as refused:
        world.container("a").ready(("old",), environ, soon())
    assert "Airflow, which in this image needs pydantic 2" in str(refused.value)
    assert "all versions of old depend on pydantic<2" in str(refused.value)
    with pytest.raises(ConfigError, match="pydantic <2 was asked for, and Airflow in this image needs"):
        world.container("a").ready(("pydantic<2",), environ, soon())
    away = {**environ, "UV_NO_INDEX": "", "UV_HTTP_RETRIES": "0"}
    away["UV_DEFAULT_INDEX"] = "http://user:hunter2secret@127.0.0.1:9/wheels"
    with pytest.raises(UnreachableError) as unreachable:
        world.container("a").ready(("absent",), away, soon())
    assert "package index can't be reached" in str(unreachable.value)
    assert "hunter2secret" not in str(unreachable.value)
    assert world.stored() == [] and not list(world.root.glob("a/[!.]*/lib"))

    # Two want the same that can't be had: it is tried once.
    place = Path(environ["SLOW_PLACE"])
    with ThreadPoolExecutor() as containers:
        first = containers.submit(world.container("b").ready, ("slow",), environ, soon())
        wait_until((place / "began").exists, 60)
        second = containers.submit(world.container("c").ready, ("slow",), environ, soon())
        wait_until(lambda: world.noted("c info container b builds the virtualenv"), 60)
        (place / "fail").touch()
        (place / "go-on").touch()
        reasons = {str(future.exception(60)) for future in (first, second)}
    assert len(reasons) == 1 and "it fails on purpose" in reasons.pop()
    assert not world.noted("c info building")


def test_a_builder_that_is_killed_leaves_nothing_half_done(
    world: World, environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(environ["SLOW_PLACE"])
    command = [sys.executable, "-c", BUILDER, str(world.volume.name), str(world.state.name)]
    builder = subprocess.Popen([*command, str(world.root / "a")], env=dict(environ), start_new_session=True)
    try:
        wait_until(lambda: (place / "began").exists() or builder.poll() is not None, 60)
        assert builder.poll() is None
        # Another container waits for the one that works, until nobody wants the result any more.
        polls = iter(range(1000))
        with pytest.raises(ModalflowError, match="nobody waits"):
            world.container("b").ready(
                ("slow",), environ, Limits(time.monotonic() + 120, lambda: next(polls) > 2)
            )
        assert world.noted("b info container killed builds the virtualenv")
    finally:
        builder.kill()
        builder.wait()
    (place / "go-on").touch()
    monkeypatch.setattr(lease, "LOST_SECONDS", 2.0)
    assert world.stored() == []

    class DiesBetween(VolumeFiles):
        def write(self, path: str, source: Any) -> None:
            if path.endswith(".json"):
                raise KeyboardInterrupt
            super().write(path, source)

    # Of the next one the archive arrives, but not what names it.
    with pytest.raises(KeyboardInterrupt):
        world.container("b", DiesBetween(world.volume)).ready(("slow",), environ, soon())
    assert len(world.stored()) == 1
    for name in "ab":
        venv = world.container(name).ready(("slow",), environ, soon())
        assert (folder.site_packages(venv) / "slow.py").is_file()
    assert len(world.noted("info built the virtualenv")) == 1 and len(world.stored()) == 3


def test_an_installation_ends_when_nobody_wants_it_or_its_time_is_over(
    world: World, environ: Mapping[str, str]
) -> None:
    place = Path(environ["SLOW_PLACE"])
    with pytest.raises(ModalflowError, match="the installation was stopped"):
        world.container("a").ready(
            ("slow",), environ, Limits(time.monotonic() + 120, (place / "began").exists)
        )
    with pytest.raises(ModalflowError, match=r"installing slow did not end within \d+ s; put large packages"):
        world.container("a").ready(("slow",), environ, Limits(time.monotonic() + 3))
    assert world.stored() == [] and not list(world.root.glob("a/.*.partial"))


def test_the_cache_of_a_virtualenv_operator_outlives_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.providers.standard.operators.python import PythonVirtualenvOperator

    made: list[Path] = []

    class WithoutIndex(PythonVirtualenvOperator):  # type: ignore[misc]
        """Airflow's cache, for a virtualenv that needs no index and a hash that needs no server."""

        def _calculate_cache_hash(self, exclude_cloudpickle: bool = False) -> tuple[str, str]:
            return "0123abcd", json.dumps({"exclude_cloudpickle": exclude_cloudpickle})

        def _prepare_venv(self, venv_path: Path) -> None:
            virtualenvs.create(venv_path, symlinks=True)
            (folder.site_packages(venv_path) / "tone.py").write_text("TONE = 'bright'")
            made.append(venv_path)

    env = uuid.uuid4().hex[:8]
    files = VolumeFiles(
        modal.Volume.from_name(names.ResourceNames(env).volume, version=2, create_if_missing=True).hydrate()
    )
    monkeypatch.setenv(airflow_settings.ENV_NAME, env)
    monkeypatch.setenv(airflow_settings.VOLUME_PATH, str(tmp_path / "mount"))
    monkeypatch.setattr(
        PythonVirtualenvOperator,
        "_ensure_venv_cache_exists",
        PythonVirtualenvOperator._ensure_venv_cache_exists,
    )
    operator_cache.keep_caches()
    cache = tmp_path / "cache"
    operator = WithoutIndex(task_id="t", python_callable=soon, venv_cache_path=cache)

    def tone() -> str:
        ready = operator._ensure_venv_cache_exists(cache)
        run = [str(ready / "bin" / "python"), "-c", "import tone, sys; print(tone.TONE, sys.prefix)"]
        said = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
        assert said[1] == str(ready)
        return said[0]

    assert tone() == "bright" and len(made) == 1
    # Another container has nothing but the Volume.
    shutil.rmtree(cache)
    assert tone() == "bright" and len(made) == 1
    # One with another interpreter, or without Modal, makes its own.
    (pointer,) = (entry.path for entry in files.list("venvs") if entry.path.endswith(".json"))
    stored = json.loads(files.read(pointer))
    assert all(path.startswith("bin/python") for path in stored["links"])
    stored["links"] = dict.fromkeys(stored["links"], "/no/python")
    files.write(pointer, json.dumps(stored).encode())
    shutil.rmtree(cache)
    assert tone() == "bright" and len(made) == 2
    monkeypatch.delenv(airflow_settings.ENV_NAME)
    shutil.rmtree(cache)
    assert tone() == "bright" and len(made) == 3
    # On the mount it stays anyway.
    before = files.list("venvs")
    monkeypatch.setenv(airflow_settings.ENV_NAME, env)
    cache = tmp_path / "mount" / "cache"
    assert tone() == "bright" and len(made) == 4 and files.list("venvs") == before

"""When a forked container isn't what a new interpreter would have been."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_modal.zygote import Preloaded, preload

ENVIRON = {"PATH": "/usr/bin", "HOME": "/nonexistent", "PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8"}
ASKED = {"MODAL_LOGLEVEL": None, "MODAL_IS_REMOTE": "1", "HOME": "/nonexistent"}


@pytest.fixture
def preloaded() -> Preloaded:
    return Preloaded(ENVIRON, ASKED)


def container(tmp_path: Path, **environ: str) -> dict[str, str]:
    """The environment of a container whose home is `tmp_path`, and whose code is in `tmp_path / "code"`."""
    code = tmp_path / "code"
    code.mkdir(exist_ok=True)
    own = {"HOME": str(tmp_path), "PYTHONPATH": f"{code}:{tmp_path / 'absent'}", "MODAL_IS_REMOTE": "1"}
    return ENVIRON | own | {"MODAL_TASK_ID": "ta-1", "ANYTHING": "else"} | environ


def test_an_ordinary_container_is_like_a_new_interpreter(preloaded: Preloaded, tmp_path: Path) -> None:
    environ = container(tmp_path)
    (tmp_path / "code" / "mine.py").write_text("")
    assert preloaded.differences(environ) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PYTHONHASHSEED", "0"),
        ("PYTHONOPTIMIZE", "1"),
        ("PYTHONUNBUFFERED", ""),
        ("LD_PRELOAD", "/lib/x.so"),
        ("MALLOC_ARENA_MAX", "1"),
        ("LC_ALL", "C"),
        ("LANG", "de_DE.UTF-8"),
        ("OPENSSL_CONF", "/etc/own.cnf"),
        # What the imports have asked for, whatever its name.
        ("MODAL_LOGLEVEL", "DEBUG"),
        ("MODAL_IS_REMOTE", ""),
    ],
)
def test_variables_that_are_read_only_once(
    preloaded: Preloaded, tmp_path: Path, name: str, value: str
) -> None:
    assert preloaded.differences(container(tmp_path, **{name: value})) == [f"{name} is another"]


@pytest.mark.parametrize("file", ["json/__init__.py", "json.py", "pytest.pyi", "sitecustomize.py"])
def test_code_that_would_be_imported_instead(preloaded: Preloaded, tmp_path: Path, file: str) -> None:
    environ = container(tmp_path)
    path = tmp_path / "code" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    name = file.partition("/")[0].partition(".")[0]
    assert preloaded.differences(environ) == [f"{name} is in {tmp_path / 'code'}"]


@pytest.mark.parametrize("entry", ["", "relative", __file__])
def test_paths_that_only_an_interpreter_understands(preloaded: Preloaded, tmp_path: Path, entry: str) -> None:
    assert len(preloaded.differences(container(tmp_path, PYTHONPATH=f"/nonexistent:{entry}"))) == 1


def test_an_imported_file_that_is_not_the_same_any_more(preloaded: Preloaded, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("")
    preloaded.files[str(path)] = (1, 2, 3)
    assert preloaded.differences(container(tmp_path)) == [f"{path} is another file"]


def test_settings_of_the_sdk_in_the_home_directory(preloaded: Preloaded, tmp_path: Path) -> None:
    (tmp_path / ".modal.toml").write_text("")
    assert preloaded.differences(container(tmp_path)) == [f"{tmp_path}/.modal.toml exists"]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that looks at the environment in several ways while it is imported."""
    (tmp_path / "zygote_asks.py").write_text(
        "import os\nos.environ.get('ASKED_GET')\nos.getenv('ASKED_GETENV', 'x')\n'ASKED_IN' in os.environ\n"
        "FOUND = os.environ['ASKED_ITEM']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ASKED_ITEM", "value")
    yield "zygote_asks"


def test_what_imports_ask_of_the_environment_is_noted(module: str) -> None:
    kind = type(os.environ)
    asked = preload(module).asked
    expected = {"ASKED_GET": None, "ASKED_GETENV": None, "ASKED_IN": None, "ASKED_ITEM": "value"}
    assert {name: value for name, value in asked.items() if name.startswith("ASKED")} == expected
    assert type(os.environ) is kind

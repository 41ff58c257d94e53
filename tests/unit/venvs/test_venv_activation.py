from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.venvs import activation, folder

SUPERVISOR = """
import os, sys
from airflow_provider_modal.venvs import activation
activation.in_forks()
if os.fork() == 0:
    import only_there
    print(only_there.__file__, flush=True)
    os._exit(0)
os.wait()
print(any(path.startswith(os.environ["MODALFLOW_VENV"]) for path in sys.path))
"""


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtualenv with a module, one that a .pth file leads to, and a provider of Airflow."""
    folder.make(tmp_path / "venv")
    packages = folder.site_packages(tmp_path / "venv")
    (packages / "only_there.py").write_text("")
    (packages / "elsewhere").mkdir()
    (packages / "elsewhere" / "by_pth.py").write_text("")
    (packages / "more.pth").write_text("elsewhere\n")
    provider = packages / "airflow" / "providers" / "made_up"
    provider.mkdir(parents=True)
    (provider / "__init__.py").write_text("")
    return tmp_path / "venv"


def test_packages_come_first_and_leave_no_trace(venv: Path) -> None:
    import airflow.providers

    before = (list(sys.path), dict(os.environ), list(airflow.__path__), set(sys.modules))
    with activation.activated(venv):
        packages = str(folder.site_packages(venv))
        assert sys.path[:2] == [packages, f"{packages}/elsewhere"]
        assert sys.path[2:] == before[0]
        activation.activate(venv)
        assert sys.path.count(packages) == 1
        assert os.environ["PATH"].startswith(f"{venv}/bin:") and os.environ["MODALFLOW_VENV"] == str(venv)
        for name in ("only_there", "by_pth", "airflow.providers.made_up"):
            assert str(importlib.import_module(name).__file__).startswith(packages)
        # The image's own are still found.
        importlib.import_module("airflow.providers.standard")
    assert (list(sys.path), dict(os.environ), list(airflow.__path__)) == before[:3]
    assert not {"only_there", "by_pth", "airflow.providers.made_up"} & (set(sys.modules) - before[3])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("only_there")


def test_a_module_that_is_imported_already_is_told(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activation.check(venv)
    early = ModuleType("only_there")
    early.__file__ = "/elsewhere/only_there.py"
    monkeypatch.setitem(sys.modules, "only_there", early)
    with pytest.raises(ModalflowError, match="had imported only_there before"):
        activation.in_forks({"MODALFLOW_VENV": str(venv)})
    early.__file__ = str(folder.site_packages(venv) / "only_there.py")
    activation.check(venv)


def test_forked_processes_have_the_packages_and_this_one_does_not(venv: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SUPERVISOR],
        env={**os.environ, activation.VARIABLE: str(venv)},
        capture_output=True,
        text=True,
        check=True,
    )
    child, parent = run.stdout.splitlines()
    assert child == str(folder.site_packages(venv) / "only_there.py") and parent == "False"

"""Real DAG files in real child processes with Airflow's own DagBag, which each of them imports: few cases."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import psutil
import pytest

from airflow_provider_modal.cli import dag_file
from airflow_provider_modal.errors import ConfigError
from local_modal.testing import wait_until
from tests.support.processes import is_running

LIMIT = 2.0
PLENTY = 60.0
HEADER = "from airflow.sdk import DAG, dag, task\n"


def written(folder: Path, text: str, name: str = "my_dag.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(path: Path, limit: float = PLENTY) -> str:
    """Return the sentence that refuses the file; it leaves no process behind."""
    before = set(psutil.Process().children())
    with pytest.raises(ConfigError) as caught:
        dag_file.read(path)
        dag_file.check(path, limit)
    message = str(caught.value)
    assert path.name in message
    assert len(message.splitlines()) <= 2
    assert set(psutil.Process().children()) <= before
    return message


def test_a_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two DAGs, a module beside, a variable: the caller's own Airflow settings don't matter."""
    monkeypatch.setenv("AIRFLOW__CORE__DAG_DISCOVERY_SAFE_MODE", "nonsense")
    monkeypatch.setenv("AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT", "0.001")
    monkeypatch.setenv("AIRFLOW_VAR_DAG_NAME", "named_by_variable")
    written(tmp_path, "NAME = 'named_beside'\n", "names_beside.py")
    path = written(
        tmp_path,
        HEADER + "import names_beside\nfrom airflow.sdk import Variable\n"
        "a = DAG(names_beside.NAME, schedule=None)\nb = DAG(Variable.get('dag_name'), schedule='@daily')\n",
    )
    assert dag_file.read(path) == path.read_bytes()
    checked = dag_file.check(path, PLENTY)
    assert checked.dag_ids == ["named_beside", "named_by_variable"]
    assert checked.beside == ["names_beside.py"]
    assert sorted(os.listdir(tmp_path)) == ["my_dag.py", "names_beside.py"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def broken(:\n    pass\n", "line 2: SyntaxError: invalid syntax: def broken(:"),
        ("if True:\nx = 1\n", "line 3: IndentationError"),
        ("x = " + "(" * 3000, "SyntaxError"),
    ],
)
def test_a_syntax_error_is_told_with_its_line_and_without_airflow(
    tmp_path: Path, text: str, says: str
) -> None:
    assert says in refused(written(tmp_path, HEADER + text), LIMIT)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("@dag\ndef never_called(): pass\n", "defines no DAG"),
        ("import nothing_such\n", "line 2: ModuleNotFoundError: No module named 'nothing_such'"),
        ("import os\nprint('last words', flush=True)\nos._exit(7)\n", "(exit code 7): last words"),
        (
            "from airflow.utils.session import create_session\nfrom sqlalchemy import text\n"
            "with create_session() as session: session.execute(text('SELECT 1'))\n",
            "line 4: it reads from Airflow's metadata database",
        ),
    ],
    ids=["no DAG", "missing module", "exits", "reads the database"],
)
def test_a_file_that_is_refused(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(written(tmp_path, HEADER + text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import time\ntime.sleep(1000)\n", "takes longer than 2 s to parse (it was at line 3)"),
        (
            "while True:\n    try:\n        while True: print('x' * 10000)\n    except BaseException: pass\n",
            "takes longer than 2 s",
        ),
    ],
    ids=["sleeps", "prints for ever and catches everything"],
)
def test_a_file_without_end_is_stopped(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(written(tmp_path, HEADER + text), LIMIT)


def test_a_program_that_the_file_started_dies_with_the_check(tmp_path: Path) -> None:
    """It neither delays the answer, by holding the pipes open, nor stays."""
    path = written(
        tmp_path,
        HEADER + "import subprocess, pathlib\nstarted = subprocess.Popen(['sleep', '1000'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(started.pid))\n"
        "d = DAG('starts', schedule=None)\n",
    )
    assert dag_file.check(path, PLENTY).dag_ids == ["starts"]
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(pid))


def test_what_is_not_a_text_file_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.py"
    binary.write_bytes(bytes(range(1, 256)))
    nul = tmp_path / "nul.py"
    nul.write_bytes(b"x = 1\0")
    big = tmp_path / "big.py"
    with big.open("wb") as file:
        file.truncate(20 * 1024 * 1024)
    pipe = tmp_path / "pipe.py"
    os.mkfifo(pipe)
    folder = tmp_path / "folder.py"
    folder.mkdir()
    dangling = tmp_path / "dangling.py"
    dangling.symlink_to(tmp_path / "nothing")
    assert "byte 127 is not UTF-8" in refused(binary)
    assert "NUL" in refused(nul)
    assert "has 20 MiB" in refused(big)
    assert "is not a regular file" in refused(pipe)
    assert "is a directory" in refused(folder)
    assert "does not exist" in refused(dangling)
    assert "does not exist" in refused(tmp_path / "absent.py")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "x = 1\n")
    path.chmod(stat.S_IWUSR)
    assert "can't be read: Permission denied" in refused(path)


@pytest.mark.parametrize(
    "name", ["my_dag.txt", "my_dag", ".hidden.py", "-x.py", "new\nline.py", "wild*.py", "x" * 250 + ".py"]
)
def test_a_name_that_is_not_for_dag_files_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not allowed"):
        dag_file.require_name(name)


@pytest.mark.parametrize("name", ["a.py", "my dag.py", "dag-2.v1.py", "übung.py", "__init__.py"])
def test_ordinary_names_are_allowed(name: str) -> None:
    dag_file.require_name(name)


@pytest.mark.parametrize("name", ["../a.py", "a/b.py", "/a.py", "..", ""])
def test_a_path_is_not_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match="not allowed"):
        dag_file.require_name(name)

"""Do DAG files find the packages of their requirements.txt while they are parsed, each file its own?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from airflow_provider_modal.scheduler import parse_venvs
from airflow_provider_modal.venvs import folder
from airflow_provider_modal.venvs.installer import InstallError
from airflow_provider_modal.venvs.provision import Venvs
from tests.support.airflow_children import AirflowChildren

DAG = """
import {module}
from airflow.sdk import DAG, task
with DAG({module}.DAG_ID, schedule=None):
    @task
    def hello(): print("hello")
    hello()
"""


class Ready:
    """Virtualenvs without an installer: the first requirement names the folder, ``broken`` can't be had."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def ready(self, requirements: tuple[str, ...], *_: Any) -> Path:
        if "broken" in requirements:
            raise InstallError("broken was not found")
        if "odd" in requirements:
            raise OSError("the disk is full")
        return self.root / requirements[0]


def test_each_file_is_parsed_with_its_own_packages(airflow_children: AirflowChildren, tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder.make(tmp_path / name)
        (folder.site_packages(tmp_path / name) / "helper.py").write_text(f"DAG_ID = 'of_{name}'\n")
    files: Mapping[str, str] = {
        "one/requirements.txt": "one\n",
        "one/dag.py": DAG.format(module="helper"),
        "two/requirements.txt": "two\n",
        "two/deep/dag.py": DAG.format(module="helper"),
        "two/none/requirements.txt": "# nothing\n",
        "two/none/dag.py": DAG.format(module="helper"),
        "bad/requirements.txt": "broken\n",
        "bad/dag.py": DAG.format(module="helper"),
        "bad/good.py": DAG.format(module="os").replace("os.DAG_ID", "'good'"),
        "odd/requirements.txt": "odd\n",
        "odd/dag.py": DAG.format(module="helper"),
        "dag.py": DAG.format(module="helper"),
    }
    digest = airflow_children.dag_version(files)
    tree = airflow_children.root / "modalflow" / "dag-versions" / digest
    venvs = parse_venvs.prepare(cast(Venvs, Ready(tmp_path)), tree, files, lambda: False)
    assert set(venvs) == {f"{path}/requirements.txt" for path in ("bad", "odd", "one", "two", "two/none")}
    done = airflow_children.run(
        "airflow_provider_modal.scheduler.run:parse",
        {"MODALFLOW_DAG_VERSION": digest},
        digest=digest,
        unchanged=[],
        per_file=10.0,
        phase=60.0,
        venvs=venvs,
    )
    assert (done["files"], done["errors"]) == (7, 4)
    assert {dag_id for (dag_id,) in airflow_children.sql("SELECT dag_id FROM dag")} == {
        "of_one",
        "of_two",
        "good",
    }
    errors = dict(airflow_children.sql("SELECT filename, stacktrace FROM import_error"))
    assert all("No module named 'helper'" in text for text in errors.values())
    told = "The packages of bad/requirements.txt were missing: broken was not found\n"
    assert {path for path, text in errors.items() if told in text} == {"bad/dag.py"}
    assert "odd/requirements.txt were missing: OSError: the disk is full" in errors["odd/dag.py"]
    assert not [path for path in ("dag.py", "two/none/dag.py") if "were missing" in errors[path]]

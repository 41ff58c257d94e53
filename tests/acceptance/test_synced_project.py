"""A project is synced while a run of it is under way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from local_modal.testing import wait_until
from tests.acceptance.deployment import Deployment
from tests.acceptance.modal_target import PATIENCE
from tests.acceptance.recorder import Recorder

pytestmark = pytest.mark.faults(reason="its tasks reach the recorder only on this machine")

SECONDS = 240


def listed(deployment: Deployment) -> dict[str, str]:
    """Return the version of each DAG by its id; there must be no import error."""
    dags = deployment.json("dags", "list")
    assert not dags["import_errors"], dags["import_errors"]
    return {dag["dag_id"]: dag["bundle_version"] for dag in dags["dags"]}


def test_a_run_ends_with_the_files_that_it_began_with(
    deployment: Deployment, recorder: Recorder, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    shutil.copytree(Path(__file__).parent / "project", project)
    dag_file = project / "dags" / "synced.py"
    dag_file.write_text(dag_file.read_text().replace("RECORDER_PORT", str(recorder.port)))
    sync = ("dags", "sync", str(project), "--no-delete")
    first = deployment.json(*sync)
    assert {"synced.py", "plugins/words_plugin.py"} <= {file["path"] for file in first["added"]}
    old_run = deployment.trigger("synced")
    (began,) = recorder.wait_for(f"{old_run}:first", timeout=SECONDS)
    assert began["word"] == "A"

    for name in ("include/words.py", "plugins/words_plugin.py"):
        (project / name).write_text((project / name).read_text().replace('"A"', '"B"'))
    second = deployment.json(*sync)
    assert [file["path"] for file in second["changed"]] == ["include/words.py", "plugins/words_plugin.py"]
    # The DAG's own file is the same, and is parsed all the same, because of what it imports.
    wait_until(
        lambda: listed(deployment)["synced"] == second["version"], SECONDS * PATIENCE, "the new version"
    )
    recorder.release(f"{old_run}:first")
    (ended,) = recorder.wait_for(f"{old_run}:second", timeout=SECONDS)
    facts = {name: ended[name] for name in ("word", "own", "macro", "version")}
    assert facts == {"word": "A", "own": "A", "macro": "A", "version": first["version"]}

    new_run = deployment.trigger("synced")
    recorder.release(f"{new_run}:first")
    (ended,) = recorder.wait_for(f"{new_run}:second", timeout=SECONDS)
    facts = {name: ended[name] for name in ("word", "own", "macro", "version")}
    assert facts == {"word": "B", "own": "B", "macro": "B", "version": second["version"]}
    assert "not_a_dag_file" not in listed(deployment)

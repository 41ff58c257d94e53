"""Deferred tasks: their triggers run on Modal while there are any, and survive their container."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.deployment import Deployment
from tests.acceptance.recorder import Recorder

pytestmark = pytest.mark.faults(reason="its triggers reach the recorder only on this machine")

SECONDS = 240


def test_deferred_tasks_go_on_when_their_triggers_fire(
    deployment: Deployment, recorder: Recorder, tmp_path: Path
) -> None:
    source = (Path(__file__).parent / "dags" / "deferring.py").read_text()
    path = tmp_path / "deferring.py"
    path.write_text(source.replace("RECORDER_PORT", str(recorder.port)))
    deployment.add_dag(path, "deferring")

    run_id = deployment.trigger("deferring")
    (before,) = recorder.wait_for(f"{run_id}:waits", timeout=SECONDS)
    deployment.kill_container(before["container"])
    *_, after = recorder.wait_for(f"{run_id}:waits", count=2, timeout=SECONDS)
    assert after["container"] not in (None, before["container"])
    recorder.release(f"{run_id}:waits")
    (resumed,) = recorder.wait_for(f"{run_id}:resumed", timeout=SECONDS)
    assert resumed["text"] == "it was told"
    assert resumed["container"] not in (None, before["container"], after["container"])
    assert deployment.finished("deferring", run_id, SECONDS)["state"] == "success"
    log = deployment.modalflow("logs", "deferring", run_id, "told").stdout
    assert log.index("Pausing task as DEFERRED") < log.index("Trigger fired event") < log.rindex("modalflow")

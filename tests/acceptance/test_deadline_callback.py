"""A run misses its deadline: the callback runs on Modal, once, while the run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.deployment import Deployment
from tests.acceptance.recorder import Recorder

pytestmark = pytest.mark.faults(reason="its tasks reach the recorder only on this machine")


def test_the_callback_of_a_missed_deadline_runs_once(
    deployment: Deployment, recorder: Recorder, tmp_path: Path
) -> None:
    source = (Path(__file__).parent / "dags" / "late.py").read_text()
    path = tmp_path / "late.py"
    path.write_text(source.replace("RECORDER_PORT", str(recorder.port)))
    deployment.add_dag(path, "late")

    run_id = deployment.trigger("late")
    (waits,) = recorder.wait_for("waits")
    (told,) = recorder.wait_for("late")
    assert told["text"] == "it takes too long"
    assert told["container"] not in (None, waits["container"])
    recorder.release("waits")
    assert deployment.finished("late", run_id)["state"] == "success"
    assert len(recorder.events("late")) == 1

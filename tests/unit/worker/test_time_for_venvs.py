from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

import pytest

from airflow_provider_modal import wire
from airflow_provider_modal.config import CALL_MARGIN_SECONDS
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.venvs.installer import StoppedError
from airflow_provider_modal.venvs.provision import Limits, Venvs
from airflow_provider_modal.worker import venvs
from airflow_provider_modal.worker.limits import Cancellation


def call(timeout: float = 100, **more: Any) -> wire.TaskCall:
    workload = json.dumps({"dag_rel_path": "team/dag.py"})
    return wire.TaskCall("d", "task", None, workload, None, "scheduler", timeout, **more)


def test_what_is_wanted_is_of_the_task_and_of_its_folder(tmp_path: Path) -> None:
    assert venvs.wanted(call(), tmp_path) == ()
    (tmp_path / "requirements.txt").write_text("Numpy\npandas")
    asked = call(requirements=["pandas", "tone"])
    assert venvs.wanted(asked, tmp_path) == ("numpy", "pandas", "tone")
    assert venvs.wanted(asked, None) == ("pandas", "tone")
    with pytest.raises(ConfigError, match="'requirements'"):
        venvs.wanted(call(requirements=["-r x"]), None)


def test_only_a_long_installation_costs_the_task_time() -> None:
    now = time.time()
    assert venvs.time_limit(call(), now) == venvs.time_limit(call(), now - 200) == 100
    late = venvs.time_limit(call(), now - venvs.SPARE_SECONDS - 40)
    assert 50 < late <= 60
    # Whatever happened before: the task's end comes before Modal's.
    for passed in (0, 100, venvs.SPARE_SECONDS + 50):
        ends = passed + venvs.time_limit(call(), now - passed) + venvs.END_SECONDS
        assert ends <= 100 + CALL_MARGIN_SECONDS + 1


def test_an_installation_has_an_end_and_can_be_cancelled(tmp_path: Path) -> None:
    cancelled = Cancellation()
    given: list[Limits] = []

    class Recorded:
        def ready(self, _wanted: object, environ: dict[str, str], limits: Limits) -> Path:
            assert environ["INDEX"] == "mine"
            given.append(limits)
            if limits.stop():
                raise StoppedError
            return tmp_path

    def environment(timeout: float, passed: float = 0) -> dict[str, str]:
        started_at = time.time() - passed
        asked = call(timeout, env={"INDEX": "mine"})
        return venvs.environment(cast(Venvs, Recorded()), ("a",), asked, started_at, cancelled)

    assert environment(100)["MODALFLOW_VENV"] == str(tmp_path)
    environment(100, passed=30)
    environment(86_000)
    left = [limits.ends - time.monotonic() for limits in given]
    most = venvs.SPARE_SECONDS + 50
    assert most - 30 < left[0] <= most and most - 60 < left[1] <= most - 30
    assert venvs.INSTALL_SECONDS - 30 < left[2] <= venvs.INSTALL_SECONDS
    cancelled.requested = True
    assert environment(100) == {}

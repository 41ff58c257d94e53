"""How does a dispatch end whose call is cancelled after a container took it and before it ran anything?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_modal import names, wire
from airflow_provider_modal.worker import claim, dispatch, limits


@pytest.mark.parametrize(
    ("noted", "outcome", "told"),
    [
        ({names.cancel_key("d1"): "no container took it"}, "not_started", "no container took it"),
        ({}, "failed", "by a person"),
    ],
)
def test_only_what_airflow_takes_back_is_not_started(noted: dict[str, Any], outcome: str, told: str) -> None:
    call = wire.TaskCall(
        dispatch="d1",
        kind="task",
        key=wire.TaskKey("dag", "task", "run", 1),
        workload="{}",
        log_path=None,
        partition="scheduler",
        timeout=60,
    )
    run = object.__new__(dispatch._Run)
    run.call, run.cancelled = call, limits.Cancellation(requested=True)
    run.container = SimpleNamespace(state=noted)  # type: ignore[assignment]
    verdict = claim.Verdict(True, wire.Claim("token", "claimed", "ta-1", at=1.0))
    ended, reason = run._run(verdict, {})
    assert ended == outcome
    assert str(reason).startswith("cancelled:") and told in str(reason)

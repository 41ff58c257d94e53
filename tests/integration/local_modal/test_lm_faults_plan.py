"""A run with faults is written down and can be repeated; plans act at their times."""

from __future__ import annotations

import json
from pathlib import Path

import modal
import pytest

from local_modal.fault_journal import JOURNAL_FILE
from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import client, deploy
from tests.integration.local_modal.sdk import connected

pytestmark = pytest.mark.one_sdk

CALLS = 40


def luck(server: LocalModal) -> list[bool]:
    """Which of some reads fail."""
    seen = []
    with connected(server) as sdk:
        notes = modal.Dict.from_name("luck", create_if_missing=True, client=sdk).hydrate(sdk)
        for _ in range(CALLS):
            try:
                seen.append(notes.get("x") is None)
            except modal.exception.ConflictError:
                seen.append(False)
    return seen


def test_a_failing_run_can_be_repeated(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("- {fault: fail, rpc: DictGet, status: ABORTED, probability: 0.5}\n")
    with LocalModal(tmp_path / "first", arguments=["--faults", str(plan)]) as server:
        first, seed = luck(server), server.seed
        assert f"seed {seed}" in server.log
        assert server.faults()[0]["struck"] == first.count(False)
    assert 5 < sum(first) < 35
    journal = tmp_path / "first" / JOURNAL_FILE
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [event["event"] for event in events[:2]] == ["started", "set"] and events[0]["seed"] == seed
    strikes = [event for event in events if event["event"] == "strike"]
    assert [strike["number"] for strike in strikes] == [n for n, fine in enumerate(first) if not fine]
    assert strikes[0]["rpc"] == "DictGet" and strikes[0]["caller"] == "client" and strikes[0]["time"] > 0

    with LocalModal(arguments=["--faults", str(journal)]) as server:
        wait_until(server.faults)
        assert server.seed == seed and luck(server) == first


def test_a_plan_acts_at_its_times(fresh_local_modal: LocalModal) -> None:
    """A container dies under its input, which starts again; the journal says so without its id."""
    server = fresh_local_modal
    deploy(server, "basics")
    call = client(server, "result = f('attempts').spawn('plan', 2, 'sleep').object_id")
    server.wait_for_container("attempts")
    kill = {"at": 0.1, "action": "kill", "function_name": "attempts", "count": 1}
    server.control("replay", faults=[kill, {"at": 0.2, "fault": "latency", "delay": 0.01}], seed=5)
    assert client(server, "result = modal.FunctionCall.from_id(call).get(timeout=30)[0]", call=call) == 2
    assert server.control("faults")["seed"] == 5 and server.faults()[0]["struck"] > 0
    events = [json.loads(line) for line in (server.state_dir / JOURNAL_FILE).read_text().splitlines()]
    [action] = [event for event in events if event["event"] == "action"]
    assert action["action"] == "kill" and action["fields"]["function_name"] == "attempts"

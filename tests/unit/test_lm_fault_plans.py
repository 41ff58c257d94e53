"""Plans of faults and the journal of a run, from which the same plan can be made."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from local_modal.fault_journal import JOURNAL_FILE, Journal, parse, read_plan
from local_modal.faults import FaultRefused, Faults, FaultSpec, Visit

PLAN = """\
seed: 7
faults:
  - {at: 5, fault: stall, rpc: "Queue*", seconds: 10}
  - {fault: fail, rpc: FunctionPutInputs, count: 2}
  - {at: 3, action: kill, function_name: work, count: 1}
"""


def test_a_plan_is_carried_out_in_the_order_of_its_times(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    plan = read_plan(path)
    assert plan.seed == 7
    assert [(entry.at, entry.action or (entry.spec and entry.spec.fault)) for entry in plan.entries] == [
        *((0.0, "fail"), (3, "kill"), (5, "stall"))
    ]
    assert plan.entries[1].fields == {"function_name": "work", "count": 1}
    assert parse(plan.to_json()) == plan


def test_a_plan_can_be_json_and_only_a_list(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('[{"fault": "fail", "rpc": "A"}]')
    assert read_plan(path).seed is None and len(read_plan(path).entries) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("faults: 3", "expected a list of faults"),
        ("[{fault: fail}]", "entry 1: rpc: fail needs"),
        ("[{fault: fail, rpc: A}, {action: explode}]", "entry 2: action: 'explode' is none of kill"),
        ("[{fault: fail, rpc: A, at: -1}]", "at: -1"),
        ("[x]", "'x' is not an object"),
        ("{faults: [], sed: 1}", "sed: expected 'faults' and 'seed' only"),
        ("{faults: [], seed: x}", "seed: 'x' is not a whole number"),
        ("[", "not YAML"),
    ],
)
def test_a_plan_that_is_wrong_names_its_file_and_entry(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(content)
    with pytest.raises(FaultRefused, match=f"plan.yaml: .*{re.escape(said)}"):
        read_plan(path)


def test_a_plan_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FaultRefused, match="No such file"):
        read_plan(tmp_path / "none.yaml")


def run(journal: Journal, seed: int) -> list[list[str]]:
    """Two faults and some requests; returns which faults struck each."""
    journal.write({"event": "started", "seed": seed})
    faults = Faults(seed, lambda: 0.0, journal.write)
    faults.add(FaultSpec.of({"fault": "fail", "rpc": "A", "probability": 0.3}))
    faults.add(FaultSpec.of({"fault": "latency", "delay": 1, "jitter": 1, "probability": 0.5}))
    return [[f"{s.fault.fault_id} {s.delay}" for s in faults.strikes(Visit(name))] for name in "ABABAAAABBBB"]


def test_a_journal_repeats_its_last_run_with_faults(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    run(journal, 1)
    first = run(journal, 2)
    journal.write({"event": "started", "seed": 3})  # a restart without faults
    plan = read_plan(tmp_path / JOURNAL_FILE)
    assert plan.seed == 2 and [entry.at for entry in plan.entries] == pytest.approx([0, 0], abs=1)
    faults = Faults(plan.seed, lambda: 0.0)
    for entry in plan.entries:
        assert entry.spec is not None
        faults.add(entry.spec)
    again = [[f"{s.fault.fault_id} {s.delay}" for s in faults.strikes(Visit(n))] for n in "ABABAAAABBBB"]
    assert again == first and any(first)


def test_actions_and_clearings_are_repeated_too_at_their_times(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = [
        {"time": 100.0, "event": "started", "seed": 5},
        {"time": 101.5, "event": "set", "id": "f1", "spec": {"fault": "fail", "rpc": "A"}},
        {"time": 102.0, "event": "strike", "id": "f1", "rpc": "A"},
        {"time": 103.0, "event": "action", "action": "kill", "fields": {"function_name": "work"}},
        {"time": 104.0, "event": "cleared", "id": "f1"},
    ]
    path = tmp_path / JOURNAL_FILE
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    plan = read_plan(path).to_json()
    assert plan["seed"] == 5 and plan["faults"] == [
        {"at": 1.5, "fault": "fail", "effect": "fail", "rpc": "A"},
        {"at": 3.0, "action": "kill", "function_name": "work"},
        {"at": 4.0, "action": "clear", "id": "f1"},
    ]


def test_a_journal_without_faults_has_nothing_to_repeat(tmp_path: Path) -> None:
    Journal(tmp_path).write({"event": "started", "seed": 1})
    with pytest.raises(FaultRefused, match="no fault was ever set"):
        read_plan(tmp_path / JOURNAL_FILE)

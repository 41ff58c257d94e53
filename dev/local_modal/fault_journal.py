"""How a run with faults is written down and repeated: the journal `faults.jsonl`, and plans.

A plan is a YAML or JSON file, written by hand:

    seed: 7
    faults:
      - {fault: fail, rpc: FunctionPutInputs, count: 2}
      - {at: 3, action: kill, function_name: work}
      - {at: 5, fault: stall, rpc: "Queue*", seconds: 10}

`at` is in seconds from the start of the plan. A journal is a plan as well: its last run that had faults is
repeated, with its seed and its times.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local_modal.faults import FaultRefused, FaultSpec

JOURNAL_FILE = "faults.jsonl"
ACTIONS = ("kill", "preempt", "redeliver", "fire", "advance", "expire", "pause", "clear")
"""What happens once, at its time, rather than to requests; each takes the fields of its control API."""


class Journal:
    """Appends what happens to `faults.jsonl` in the state directory, a JSON object a line."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / JOURNAL_FILE

    def write(self, event: Mapping[str, Any]) -> None:
        """Append an event, with the time; it is in the file when this returns."""
        with self._path.open("a") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")


@dataclass(frozen=True)
class PlanEntry:
    """A fault to be set, or an action to be taken, some seconds after the plan's start."""

    at: float
    spec: FaultSpec | None = None
    action: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    """What the action applies to."""


@dataclass(frozen=True)
class Plan:
    """Faults and actions in the order of their times."""

    entries: tuple[PlanEntry, ...]
    seed: int | None = None

    def to_json(self) -> dict[str, Any]:
        """What `parse` takes."""
        return {
            "seed": self.seed,
            "faults": [
                {"at": entry.at, **entry.spec.to_json()}
                if entry.spec
                else {"at": entry.at, "action": entry.action, **entry.fields}
                for entry in self.entries
            ],
        }


def read_plan(path: Path) -> Plan:
    """Read a plan (.yaml, .yml, .json) or a journal (.jsonl).

    Raises:
        FaultRefused: it can't be read or understood; with the file's name.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise FaultRefused(f"{path}: {error.strerror}") from None
    try:
        if path.suffix == ".jsonl":
            return of_journal([json.loads(line) for line in text.splitlines() if line.strip()])
        return parse(_load(path, text))
    except (ValueError, KeyError, TypeError) as error:
        raise FaultRefused(f"{path}: {error}") from None


def _load(path: Path, text: str) -> Any:
    if path.suffix == ".json":
        return json.loads(text)
    try:
        import yaml
    except ImportError:
        raise FaultRefused("PyYAML is not installed here: write the plan as .json") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FaultRefused(f"not YAML: {error}") from None


def parse(content: Any) -> Plan:
    """A plan from the content of its file: {"seed", "faults"} or the list of faults alone.

    Raises:
        FaultRefused: something in it is wrong; with the number of the entry.
    """
    if isinstance(content, list):
        content = {"faults": content}
    if not isinstance(content, dict) or not isinstance(content.get("faults"), list):
        raise FaultRefused("expected a list of faults, or an object with 'faults' and 'seed'")
    if unknown := sorted(set(content) - {"faults", "seed"}):
        raise FaultRefused(f"{', '.join(map(str, unknown))}: expected 'faults' and 'seed' only")
    seed = content.get("seed")
    if seed is not None and not isinstance(seed, int):
        raise FaultRefused(f"seed: {seed!r} is not a whole number")
    entries = []
    for number, given in enumerate(content["faults"], start=1):
        try:
            entries.append(_entry(given))
        except FaultRefused as error:
            raise FaultRefused(f"entry {number}: {error}") from None
    return Plan(tuple(sorted(entries, key=lambda entry: entry.at)), seed)


def _entry(given: Any) -> PlanEntry:
    if not isinstance(given, dict):
        raise FaultRefused(f"{given!r} is not an object with 'fault' or 'action'")
    fields = dict(given)
    at = fields.pop("at", 0.0)
    if not isinstance(at, (int, float)) or at < 0:
        raise FaultRefused(f"at: {at!r} is not a number of seconds")
    if "action" not in fields:
        return PlanEntry(at, spec=FaultSpec.of(fields))
    action = fields.pop("action")
    if action not in ACTIONS:
        raise FaultRefused(f"action: {action!r} is none of {', '.join(ACTIONS)}")
    return PlanEntry(at, action=action, fields=fields)


def of_journal(events: Sequence[Mapping[str, Any]]) -> Plan:
    """The last run in a journal in which something was set or done, with its seed and its times since that
    run's start.

    Raises:
        FaultRefused: there is none.
    """
    runs: list[list[Mapping[str, Any]]] = []
    for event in events:
        if event["event"] == "started":
            runs.append([event])
        elif runs and event["event"] in ("set", "cleared", "action"):
            runs[-1].append(event)
    found = [run for run in runs if len(run) > 1]
    if not found:
        raise FaultRefused("no fault was ever set in it")
    start, *happened = found[-1]
    entries = []
    for event in happened:
        at = max(0.0, round(event["time"] - start["time"], 3))
        if event["event"] == "set":
            entries.append(PlanEntry(at, spec=FaultSpec.of(event["spec"])))
        elif event["event"] == "cleared":
            entries.append(PlanEntry(at, action="clear", fields={"id": event["id"]}))
        else:
            entries.append(PlanEntry(at, action=event["action"], fields=dict(event["fields"])))
    return Plan(tuple(entries), start["seed"])

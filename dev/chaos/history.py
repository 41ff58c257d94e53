"""Were the promises kept? What user code told the recorder is compared with what Airflow's database says.

Pure: reads nothing itself, so that a test can show it histories that are wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

Task: TypeAlias = tuple[str, str, str, int]
"""DAG id, run id, task id, map index."""

RERUNS = 3
"""How often user code of a task may start that allows it (``on_container_loss: rerun``)."""
ENDED = ("success", "failed", "upstream_failed", "skipped", "removed")


@dataclass(frozen=True)
class Try:
    """One try of a task as the database has it.

    :param reason: what the database says about why it failed.
    """

    task: Task
    number: int
    state: str | None
    reason: str | None


@dataclass
class Findings:
    """Broken promises, a sentence each, and what else happened.

    :param repeated: user code that had ended ran again: its container was lost before it could report.
    :param reasons: how many tries failed for which reason, with ids and numbers left out.
    """

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    without_reason: list[str] = field(default_factory=list)
    repeated: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> bool:
        """Whether no promise was broken."""
        return not (self.lost or self.doubled or self.leaked or self.without_reason)


def check(
    records: Iterable[Mapping[str, Any]], tries: Sequence[Try], *, rerun: Iterable[str] = ("rerun",)
) -> Findings:
    """Compare the recorder's history with the database's.

    :param records: in the order in which they came.
    :param tries: of all tasks; the last one of each has its final state.
    :param rerun: ids of the tasks that may run again when their container is lost.
    """
    findings = Findings()
    told: dict[Task, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        told[record["dag_id"], record["run_id"], record["task_id"], record["map_index"]].append(record)
    by_task: dict[Task, list[Try]] = defaultdict(list)
    for each in sorted(tries, key=lambda each: each.number):
        by_task[each.task].append(each)
    for task in told.keys() - by_task.keys():
        findings.lost.append(f"{_name(task)} ran, and the database does not know it")
    for task, its_tries in by_task.items():
        _check_end(findings, its_tries, told[task])
        _check_starts(findings, task, told[task], may_rerun=task[2] in set(rerun))
        _check_reasons(findings, its_tries, told[task])
    return findings


def _check_end(findings: Findings, tries: Sequence[Try], records: Sequence[Mapping[str, Any]]) -> None:
    last = tries[-1]
    findings.states[str(last.state)] += 1
    if last.state not in ENDED:
        findings.lost.append(f"{_name(last.task)} is still {last.state} in try {last.number}")
    # Of whatever try: what counts is that a success was one.
    if last.state == "success" and not any(record["event"] == "end" for record in records):
        findings.lost.append(f"{_name(last.task)} is a success, and its user code did not end")


def _check_starts(
    findings: Findings, task: Task, records: Sequence[Mapping[str, Any]], *, may_rerun: bool
) -> None:
    starts = [(place, r) for place, r in enumerate(records) if r["event"] == "start"]
    most = RERUNS if may_rerun else 1
    for name, value in (("try", "try"), ("dispatch", "dispatch")):
        counts = Counter(str(record[value]) for _, record in starts)
        for which, count in counts.items():
            if count > most:
                findings.doubled.append(f"{_name(task)}: user code of {name} {which} started {count} times")
    for (_, former), (place, later) in pairwise(starts):
        if any(_same(record, former) for record in records[place + 1 :]):
            findings.doubled.append(
                f"{_name(task)}: user code ran in {former['container']} and {later['container']} at once"
            )
        # A try that ended by itself, other than by an exception, was the last one as far as user code goes.
        findings.repeated += any(_same(r, former) and r["event"] == "end" for r in records)


def _check_reasons(findings: Findings, tries: Sequence[Try], records: Sequence[Mapping[str, Any]]) -> None:
    for each in tries:
        own_doing = any(r["event"] == "raise" and r["try"] == each.number for r in records)
        if each.state not in ("failed", "up_for_retry") or own_doing:
            continue
        if each.reason:
            findings.reasons[_general(each.reason)] += 1
        else:
            findings.without_reason.append(f"{_name(each.task)}: try {each.number} failed")


def _same(record: Mapping[str, Any], start: Mapping[str, Any]) -> bool:
    """Whether a record comes from the same process as a start."""
    return all(record[name] == start[name] for name in ("try", "dispatch", "container", "pid"))


def _name(task: Task) -> str:
    dag_id, run_id, task_id, map_index = task
    return f"{dag_id}.{task_id}{'' if map_index < 0 else f'[{map_index}]'} of {run_id}"


def _general(reason: str) -> str:
    """Return a reason without what differs from task to task."""
    words = []
    for word in reason.split():
        differs = "-" in word[2:4] or any(character.isdigit() for character in word)
        words.append("#" if differs else word)
    return " ".join(words)

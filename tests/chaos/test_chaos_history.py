"""Does the checker of histories see each kind of broken promise?"""

from __future__ import annotations

from typing import Any

from chaos.history import Findings, Try, check

TASK = ("chaos", "run-000", "plain", 1)


def told(event: str, *, number: int = 1, container: str = "ta-1", dispatch: str = "") -> dict[str, Any]:
    dag_id, run_id, task_id, map_index = TASK
    return {
        "event": event,
        "dag_id": dag_id,
        "run_id": run_id,
        "task_id": task_id,
        "map_index": map_index,
        "try": number,
        "dispatch": dispatch or f"dispatch-{number}",
        "container": container,
        "pid": 7,
    }


def found(
    records: list[dict[str, Any]], *tries: tuple[str | None, str | None], rerun: bool = False
) -> Findings:
    """What is found in a history of one task, by the states and reasons of its tries."""
    return check(
        records,
        [Try(TASK, number, state, reason) for number, (state, reason) in enumerate(tries, start=1)],
        rerun=("plain",) if rerun else (),
    )


def test_a_task_that_starts_and_ends_keeps_all_promises() -> None:
    assert found([told("start"), told("end")], ("success", None)).kept


def test_what_has_not_ended_or_did_not_run_is_lost() -> None:
    assert "still queued" in found([], ("queued", None)).lost[0]
    assert "did not end" in found([told("start")], ("success", None)).lost[0]
    assert "does not know it" in found([told("start")]).lost[0]


def test_user_code_that_starts_again_within_a_try_is_doubled() -> None:
    again = [told("start"), told("start", container="ta-2"), told("end", container="ta-2")]
    findings = found(again, ("success", None))
    assert any("of try 1 started 2 times" in sentence for sentence in findings.doubled)
    assert found(again, ("success", None), rerun=True).kept


def test_two_tries_at_once_are_doubled_even_if_each_started_once() -> None:
    records = [told("start"), told("start", number=2, container="ta-2"), told("end"), told("end", number=2)]
    records[3]["container"] = "ta-2"
    (sentence,) = found(records, ("failed", "lost"), ("success", None)).doubled
    assert "ta-1 and ta-2 at once" in sentence


def test_a_try_that_ended_and_was_not_believed_is_counted() -> None:
    records = [told("start"), told("end"), told("start", number=2), told("end", number=2)]
    findings = found(records, ("failed", "container ta-1 was lost"), ("success", None))
    assert findings.kept and findings.repeated == 1


def test_a_failure_needs_a_reason_unless_user_code_raised() -> None:
    assert "try 1 failed" in found([told("start")], ("failed", None)).without_reason[0]
    assert found([told("start"), told("raise")], ("failed", None)).kept
    findings = found([told("start")], ("failed", "container ta-1xY was killed at 900 MiB"))
    assert findings.kept and findings.reasons == {"container # was killed at # MiB": 1}

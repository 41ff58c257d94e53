"""The cloud check's report: what a person reads, and that no check can hold up the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

from cloud.checks import ALL
from cloud.findings import Check, Finding, Seen, Verdict, judge, read_recorded, unchecked
from cloud.runner import run
from cloud.session import Session

NO_SESSION = cast(Session, None)


def check(name: str, look: Callable[[Any], Seen], seconds: float = 60.0, quiet: bool = False) -> Check:
    return Check(name, "water is wet", "airflow_provider_modal.boats", look, seconds, quiet)


def test_a_difference_says_what_it_means_and_for_whom() -> None:
    dry = Finding(check("water", unchecked), judge(False, "It was dry.", "Boats sink."), "It is wet.")
    assert dry.as_text().splitlines() == [
        "! water: different",
        "    assumed:     water is wet",
        "    seen:        It was dry.",
        "    local_modal: It is wet.",
        "    means:       Boats sink. [airflow_provider_modal.boats]",
    ]
    assert dry.as_json()["verdict"] == "different" and dry.as_json()["local_modal"] == "It is wet."
    wet = Finding(check("water", unchecked), judge(True, "It was wet.", "Boats sink."))
    assert "Boats sink" not in wet.as_text() and wet.as_text().startswith("= water: as assumed")


def test_a_check_that_fails_or_hangs_is_one_that_could_not_be_made() -> None:
    def fail(_: object) -> Seen:
        raise LookupError("no such lake\nand more")

    def hang(_: object) -> Seen:
        threading.Event().wait()
        raise AssertionError

    checks = [
        check("hangs", hang, seconds=0.2),
        check("fails", fail),
        check("holds", lambda _: judge(True, "It was wet.", "")),
        check("hangs quietly", hang, seconds=0.1, quiet=True),
    ]
    found = {each.check.name: each.seen for each in run(NO_SESSION, checks, {}, seconds=60, at_once=1)}
    assert [found[name].verdict for name in ("hangs", "fails", "hangs quietly")] == [Verdict.UNCHECKED] * 3
    assert found["fails"].text == "It failed: LookupError: no such lake"
    assert found["holds"].verdict is Verdict.AS_ASSUMED


def test_the_time_for_all_of_them_is_bounded() -> None:
    ended = threading.Event()
    slow = [check(str(number), lambda _: judge(ended.wait(30), "", ""), seconds=30) for number in range(5)]
    found = list(run(NO_SESSION, slow, {}, seconds=0.3, at_once=1))
    ended.set()
    assert len(found) == 5 and {each.seen.verdict for each in found} == {Verdict.UNCHECKED}


def test_names_are_unique_and_recorded() -> None:
    names = [each.name for each in ALL]
    assert len(set(names)) == len(names) > 30
    assert set(read_recorded()) == set(names), "run dev/cloud_check --local --record"

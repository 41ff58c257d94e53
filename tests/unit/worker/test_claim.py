"""Which delivery of a dispatch runs it?"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_modal import names, wire
from airflow_provider_modal.errors import UnreachableError
from airflow_provider_modal.worker import claim, patience
from local_modal.testing import wait_until


def call(policy: wire.ContainerLoss = "fail", lost_after: float = 30.0) -> wire.TaskCall:
    return wire.TaskCall(
        dispatch="d1",
        kind="task",
        key=wire.TaskKey("dag", "task", "run", 1),
        workload="{}",
        log_path=None,
        partition="scheduler",
        timeout=60,
        on_container_loss=policy,
        lost_after=lost_after,
    )


def held(token: str, phase: wire.Phase, deliveries: int = 1) -> wire.Claim:
    return wire.Claim(token=token, phase=phase, container=f"ta-{token}", at=1.0, deliveries=deliveries)


OWN = held("own", "claimed")


@pytest.mark.parametrize(
    ("policy", "found", "run", "deliveries", "lost"),
    [
        ("fail", None, True, 1, None),
        ("fail", held("own", "claimed"), True, 1, None),
        ("fail", held("own", "started"), True, 1, None),
        ("fail", held("other", "claimed"), True, 2, None),
        ("fail", held("other", "claimed", 7), True, 8, None),
        ("fail", held("other", "started"), False, 2, "ta-other"),
        ("rerun", held("other", "claimed"), True, 2, None),
        ("rerun", held("other", "started"), True, 2, "ta-other"),
        ("rerun", held("other", "started", claim.MAX_DELIVERIES - 1), True, claim.MAX_DELIVERIES, "ta-other"),
        (
            "rerun",
            held("other", "started", claim.MAX_DELIVERIES),
            False,
            claim.MAX_DELIVERIES + 1,
            "ta-other",
        ),
    ],
)
def test_decision(
    policy: wire.ContainerLoss, found: wire.Claim | None, run: bool, deliveries: int, lost: str | None
) -> None:
    verdict = claim.decide(call(policy), OWN, found)
    assert (verdict.run, verdict.claim.deliveries, verdict.lost_container) == (run, deliveries, lost)
    assert verdict.claim.token == "own"
    assert (verdict.reason is None) == run


def test_reasons_name_the_container_and_what_to_do() -> None:
    verdict = claim.decide(call(), OWN, held("other", "started"))
    assert "ta-other" in str(verdict.reason) and "give it retries" in str(verdict.reason)
    verdict = claim.decide(call("rerun"), OWN, held("other", "started", 3))
    assert "2 before" in str(verdict.reason) and "after 3" in str(verdict.reason)


class DownState:
    """A Dict whose server is away; no real one can be told to fail on exactly these calls."""

    def put(self, key: str, value: dict[str, Any], *, skip_if_exists: bool = False) -> bool:
        raise ConnectionError("no route to Modal")

    def get(self, key: str) -> dict[str, Any] | None:
        raise ConnectionError("no route to Modal")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSES", (0.01, 0.01))


@pytest.mark.usefixtures("impatient")
def test_state_that_is_away_leaves_it_to_airflow(caplog: pytest.LogCaptureFixture) -> None:
    verdict = claim.claim(DownState(), call(), "own", "ta-own")
    assert verdict.run and verdict.claim.token == "own"
    assert "no route to Modal" in caplog.text and "decides alone" in caplog.text
    with claim.started(DownState(), call(), verdict.claim):
        pass


@pytest.mark.usefixtures("impatient")
def test_what_airflow_does_not_decide_is_not_run_while_the_state_is_away() -> None:
    callback = replace(call(), kind="callback", key=None)
    with pytest.raises(UnreachableError, match=r"no route to Modal.*keeps a callback from running twice"):
        claim.claim(DownState(), callback, "own", "ta-own")
    with pytest.raises(UnreachableError, match="no route to Modal"):
        claim.taken_over(DownState(), callback, claim.Verdict(True, OWN))
    assert claim.taken_over(DownState(), call(), claim.Verdict(True, OWN)) is None


class HeldState(DownState):
    """A Dict that holds one claim."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value

    def put(self, key: str, value: dict[str, Any], *, skip_if_exists: bool = False) -> bool:
        assert key == names.claim_key("d1")
        return False

    def get(self, key: str) -> dict[str, Any] | None:
        return self.value if key == names.claim_key("d1") else None


def test_claim_of_another_release_leaves_it_to_airflow(caplog: pytest.LogCaptureFixture) -> None:
    verdict = claim.claim(HeldState({"wire": 99, "phase": "started"}), call(), "own", "ta-own")
    assert verdict.run and "wire version 99" in caplog.text


@pytest.mark.parametrize("kind", ["task", "callback"])
def test_a_delivery_whose_claim_was_taken_over_is_obsolete(kind: wire.Kind) -> None:
    """It got ready for so long that Modal took its container for lost, and another one began."""
    mine = replace(call(), kind=kind, key=call().key if kind == "task" else None)
    verdict = claim.taken_over(HeldState(held("other", "started").to_wire()), mine, claim.Verdict(True, OWN))
    assert verdict is not None and not verdict.run and verdict.obsolete and "ta-other" in str(verdict.reason)
    assert claim.taken_over(HeldState(OWN.to_wire()), mine, claim.Verdict(True, OWN)) is None


def test_a_task_that_starts_at_once_is_not_asked_about() -> None:
    fresh = claim.Verdict(True, replace(OWN, at=time.time()))
    other = HeldState(held("other", "started").to_wire())
    assert claim.taken_over(other, call(), fresh) is None
    assert claim.taken_over(other, replace(call(), kind="callback", key=None), fresh) is not None


class SharedState:
    """A Dict in memory, with one dispatch."""

    def __init__(self, value: dict[str, Any], result: wire.Completion | None = None) -> None:
        self.value = value
        self.result = result

    def put(self, key: str, value: dict[str, Any], *, skip_if_exists: bool = False) -> bool:
        if skip_if_exists:
            return False
        self.value = value
        return True

    def get(self, key: str) -> dict[str, Any] | None:
        if key == names.claim_key("d1"):
            return self.value
        assert key == names.result_key("d1")
        return self.result.to_wire() if self.result is not None else None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewals come at once, and silence is waited for with patience."""
    monkeypatch.setattr(claim, "BEATS_UNTIL_LOST", 600)


@pytest.mark.usefixtures("quick")
def test_a_second_delivery_leaves_a_living_one_alone() -> None:
    state = SharedState({})
    with claim.started(state, call(), held("first", "claimed")):
        verdict = claim.claim(state, call(), "own", "ta-own")
    assert not verdict.run and verdict.obsolete
    assert "ta-first" in str(verdict.reason)
    assert wire.Claim.from_wire(state.value).token == "first"


def test_a_silent_started_claim_is_a_lost_container() -> None:
    state = SharedState(held("first", "started").to_wire())
    verdict = claim.claim(state, call(lost_after=0.3), "own", "ta-own")
    assert not verdict.run and not verdict.obsolete
    assert verdict.lost_container == "ta-first"


class HangingState(SharedState):
    """A Dict whose answer to the first renewal never comes."""

    def __init__(self) -> None:
        super().__init__({})
        self.puts = 0

    def put(self, key: str, value: dict[str, Any], *, skip_if_exists: bool = False) -> bool:
        if not skip_if_exists:
            self.puts += 1
            if self.puts == 2:
                time.sleep(60)
        return super().put(key, value, skip_if_exists=skip_if_exists)


@pytest.mark.usefixtures("quick")
def test_a_delivery_lives_although_a_renewal_hangs() -> None:
    state = HangingState()
    with claim.started(state, call(), held("first", "claimed")):
        wait_until(lambda: state.puts == 2)
        verdict = claim.claim(state, call(), "own", "ta-own")
    assert verdict.obsolete and "ta-first" in str(verdict.reason)


def test_memory_is_told_with_a_renewal_and_at_once_when_it_gets_scarce(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claim, "_MEASURE_SECONDS", 0.01)
    monkeypatch.setattr(claim, "BEATS_UNTIL_LOST", 0.5)
    state = SharedState({})
    measured = [100]

    def told() -> int | None:
        return wire.Claim.from_wire(state.value).memory

    first = held("first", "claimed")
    with claim.started(state, call(), first, memory_used=lambda: measured[0], memory_alarm=800):
        measured[0] = 790
        time.sleep(0.1)
        assert told() is None
        measured[0] = 810
        wait_until(lambda: told() == 810)
        # Once is enough: the next renewal comes anyway.
        measured[0] = 900
        time.sleep(0.1)
        assert told() == 810
    verdict = claim.decide(call(), held("own", "claimed"), wire.Claim.from_wire(state.value))
    assert (verdict.lost_container, verdict.lost_memory) == ("ta-first", 810)


def test_a_gap_of_one_renewal_is_far_from_a_loss() -> None:
    assert claim._BEAT_DEADLINE < 1
    assert claim.beat_seconds(call()) * 2 * 3 <= call().lost_after


COMPLETION = wire.Completion("d1", wire.TaskKey("dag", "task", "run", 1), "done", container="ta-first")


@pytest.mark.parametrize("phase", ["claimed", "started"])
def test_what_was_reported_stands(phase: wire.Phase) -> None:
    state = SharedState(held("first", phase).to_wire(), COMPLETION)
    # Were its silence waited for, the test would end by its own time limit.
    verdict = claim.claim(state, call("rerun", lost_after=86400), "own", "ta-own")
    assert not verdict.run and verdict.reported == COMPLETION
    assert wire.Claim.from_wire(state.value).token == "first"


def test_what_is_reported_while_the_claim_is_silent_stands() -> None:
    state = SharedState(held("first", "started").to_wire())
    timer = threading.Timer(0.1, setattr, (state, "result", COMPLETION))
    timer.start()
    verdict = claim.claim(state, call(lost_after=86400), "own", "ta-own")
    timer.join()
    assert not verdict.run and verdict.reported == COMPLETION


def test_what_is_reported_before_a_later_delivery_starts_stands() -> None:
    state = SharedState(held("first", "claimed").to_wire())
    verdict = claim.claim(state, call(), "own", "ta-own")
    assert verdict.run and claim.reported_meanwhile(state, call(), verdict) is None
    state.result = COMPLETION
    meanwhile = claim.reported_meanwhile(state, call(), verdict)
    assert meanwhile is not None and not meanwhile.run and meanwhile.reported == COMPLETION
    assert "ta-first" in str(meanwhile.reason)


@pytest.mark.usefixtures("quick")
def test_a_claim_is_not_renewed_after_the_end() -> None:
    state = SharedState({})
    with claim.started(state, call(), held("first", "claimed")):
        assert wire.Claim.from_wire(state.value).phase == "started"
    last = state.value
    assert claim.claim(state, call("rerun", lost_after=0.3), "own", "ta-own").run
    assert wire.Claim.from_wire(state.value).token == "own"
    assert wire.Claim.from_wire(last).token == "first"


@pytest.mark.usefixtures("impatient")
def test_patience_repeats_and_gives_up() -> None:
    answers: list[Exception | str] = [ConnectionError("one"), ConnectionError("two"), "three"]

    def answer() -> str:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    assert patience.patiently("ask", answer) == "three"
    answers = [ConnectionError("one")]
    with pytest.raises(patience.GaveUpError, match="could not ask: ConnectionError: one"):
        patience.patiently("ask", answer, repeat=False)
    answers = [ConnectionError(str(number)) for number in range(9)]
    with pytest.raises(patience.GaveUpError, match="could not ask: ConnectionError: 2"):
        patience.patiently("ask", answer)


def test_patience_does_not_wait_for_what_hangs() -> None:
    started = time.monotonic()
    with pytest.raises(patience.GaveUpError, match=r"no answer within 0\.1 s"):
        patience.patiently("ask", lambda: time.sleep(60), deadline=0.1)
    assert time.monotonic() - started < 30

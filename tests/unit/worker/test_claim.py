"""Which delivery of a dispatch runs it?"""

from __future__ import annotations

import time
from typing import Any

import pytest

from airflow_provider_modal import names, wire
from airflow_provider_modal.worker import claim, patience


def call(policy: wire.ContainerLoss = "fail") -> wire.TaskCall:
    return wire.TaskCall(
        dispatch="d1",
        kind="task",
        key=wire.TaskKey("dag", "task", "run", 1),
        workload="{}",
        log_path=None,
        partition="scheduler",
        timeout=60,
        on_container_loss=policy,
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
    assert "ta-other" in str(verdict.reason) and "on_container_loss" in str(verdict.reason)
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


class HeldState(DownState):
    """A Dict that holds one thing."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value

    def put(self, key: str, value: dict[str, Any], *, skip_if_exists: bool = False) -> bool:
        assert key == names.claim_key("d1")
        return False

    def get(self, key: str) -> dict[str, Any] | None:
        return self.value


def test_claim_of_another_release_leaves_it_to_airflow(caplog: pytest.LogCaptureFixture) -> None:
    verdict = claim.claim(HeldState({"wire": 99, "phase": "started"}), call(), "own", "ta-own")
    assert verdict.run and "wire version 99" in caplog.text


class SharedState:
    """A Dict in memory, with one key."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value

    def put(self, key: str, value: dict[str, Any], *, skip_if_exists: bool = False) -> bool:
        if skip_if_exists:
            return False
        self.value = value
        return True

    def get(self, key: str) -> dict[str, Any] | None:
        return self.value


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(claim, "LOST_SECONDS", 0.5)
    monkeypatch.setattr(claim, "_LOOK_SECONDS", 0.02)


@pytest.mark.usefixtures("quick")
def test_a_second_delivery_leaves_a_living_one_alone() -> None:
    state = SharedState({})
    with claim.started(state, call(), held("first", "claimed")):
        verdict = claim.claim(state, call(), "own", "ta-own")
    assert not verdict.run and verdict.obsolete
    assert "ta-first" in str(verdict.reason)
    assert wire.Claim.from_wire(state.value).token == "first"


@pytest.mark.usefixtures("quick")
def test_a_silent_started_claim_is_a_lost_container() -> None:
    state = SharedState(held("first", "started").to_wire())
    verdict = claim.claim(state, call(), "own", "ta-own")
    assert not verdict.run and not verdict.obsolete
    assert verdict.lost_container == "ta-first"


@pytest.mark.usefixtures("quick")
def test_a_claim_is_not_renewed_after_the_end() -> None:
    state = SharedState({})
    with claim.started(state, call(), held("first", "claimed")):
        assert wire.Claim.from_wire(state.value).phase == "started"
    last = state.value
    assert claim.claim(state, call("rerun"), "own", "ta-own").run
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
        patience.patiently("ask", lambda: time.sleep(5), deadline=0.1)
    assert time.monotonic() - started < 2

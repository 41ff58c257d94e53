from __future__ import annotations

import threading
from typing import Any

import pytest

from airflow_provider_modal.venvs import lease
from airflow_provider_modal.venvs.lease import FailedElsewhereError, Lease
from local_modal.testing import wait_until


class Dict(dict[str, Any]):
    """As much of ``modal.Dict`` as a lease needs."""

    def put(self, key: str, value: Any, *, skip_if_exists: bool = False) -> bool:
        if skip_if_exists:
            return self.setdefault(key, value) is value
        self[key] = value
        return True


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.02)


class Other:
    """Somebody who wants the same, in a thread."""

    def __init__(self, state: Any, done: Any = lambda: False) -> None:
        self.waited_for: list[str] = []
        self.waits = threading.Event()
        self.result: Any = None
        self._thread = threading.Thread(target=self._run, args=(state, done), daemon=True)
        self._thread.start()

    def _run(self, state: Any, done: Any) -> None:
        def on_wait(holder: str) -> None:
            self.waited_for.append(holder)
            self.waits.set()

        try:
            self.result = Lease(state, "k", "other").acquire(done, on_wait)
        except Exception as error:
            self.result = error

    def end(self) -> Any:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.result


def never() -> bool:
    return False


def test_others_wait_until_the_work_is_done() -> None:
    state, finished = Dict(), threading.Event()
    first = Lease(state, "k", "first")
    assert first.acquire(never, print)
    with first.kept():
        other = Other(state, finished.is_set)
        assert other.waits.wait(30)
        wait_until(lambda: state["k"]["beat"] >= 3)
        finished.set()
    assert other.end() is False and other.waited_for == ["first"]
    assert state == {}


def test_a_free_lease_is_taken_when_nothing_was_done() -> None:
    state = Dict()
    first = Lease(state, "k", "first")
    assert first.acquire(never, print)
    with first.kept():
        other = Other(state)
        assert other.waits.wait(30)
    assert other.end() is True and state["k"]["holder"] == "other"


def test_a_failure_is_shared_with_those_who_waited_and_with_nobody_else() -> None:
    state = Dict()
    first = Lease(state, "k", "first")
    assert first.acquire(never, print)
    with first.kept():
        other = Other(state)
        assert other.waits.wait(30)
        first.fail({"text": "no such package"})
    failed = other.end()
    assert isinstance(failed, FailedElsewhereError) and failed.failure == {"text": "no such package"}
    assert Lease(state, "k", "later").acquire(never, print)
    assert state["k"]["holder"] == "later" and "failure" not in state["k"]


def test_a_lease_of_a_container_that_died_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LOST_SECONDS", 0.3)
    state = Dict()
    assert Lease(state, "k", "dead").acquire(never, print)
    assert Lease(state, "k", "next").acquire(never, print)
    assert state["k"]["holder"] == "next"


def test_waiting_can_be_ended() -> None:
    state = Dict()
    assert Lease(state, "k", "first").acquire(never, print)

    def stopped() -> bool:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Lease(state, "k", "other").acquire(stopped, print)


def test_without_the_dict_everybody_works(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(Dict):
        def get(self, *_: Any) -> Any:
            raise ConnectionError("no answer")

        put = pop = get  # type: ignore[assignment]

    mine = Lease(Away(), "k", "me")
    assert mine.acquire(never, print)
    with mine.kept():
        mine.fail({"text": "x"})

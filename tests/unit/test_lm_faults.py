"""Which requests a fault strikes, in which order and with which luck; without a server."""

from __future__ import annotations

from typing import Any

import pytest

from local_modal.faults import KINDS, FaultRefused, Faults, FaultSpec, Visit


class Scene:
    """Faults with a clock of the test's own and a journal in memory."""

    def __init__(self, seed: int = 1) -> None:
        self.now = 0.0
        self.journal: list[dict[str, Any]] = []
        self.faults = Faults(seed, lambda: self.now, self.journal.append)

    def add(self, fault: str, **settings: Any) -> str:
        return self.faults.add(FaultSpec.of({"fault": fault, **settings})).fault_id

    def hit(self, name: str, **who: Any) -> list[str]:
        return [strike.effect for strike in self.faults.strikes(Visit(name, **who))]

    def hits(self, name: str, times: int) -> list[bool]:
        return [bool(self.hit(name)) for _ in range(times)]


def test_nothing_is_armed_until_a_fault_is_set_and_after_the_last_has_ended() -> None:
    scene = Scene()
    assert not scene.faults.armed and scene.hit("QueuePut") == []
    scene.add("fail", rpc="QueuePut", count=1)
    assert scene.faults.armed and scene.hit("QueuePut") == ["fail"]
    assert not scene.faults.armed and scene.faults.known()[0].state == "spent"


@pytest.mark.parametrize(
    ("rpc", "name", "meant"),
    [
        ("QueuePut", "QueuePut", True),
        ("Queue*", "QueueGet", True),
        ("Queue*,Dict*", "DictGet", True),
        ("queueput", "QueuePut", False),
        ("*", "QueuePut", True),
        ("*", "HTTP GET /blob/x", False),
        ("*", "START", False),
        ("HTTP *", "HTTP GET /blob/x", True),
        ("HTTP PUT /blob/*", "HTTP GET /blob/x", False),
        ("S*", "START", False),
        ("START", "START", True),
    ],
)
def test_a_fault_is_for_the_names_that_its_globs_mean(rpc: str, name: str, meant: bool) -> None:
    assert FaultSpec.of({"fault": "fail", "rpc": rpc}).covers(name) is meant


def test_a_latency_of_everything_lies_on_http_as_well_but_not_on_starts() -> None:
    spec = FaultSpec.of({"fault": "latency", "delay": 0.1})
    assert [spec.covers(name) for name in ("DictGet", "HTTP GET /blob/x", "START")] == [True, True, False]


def test_a_fault_can_be_for_one_kind_of_caller_function_or_object() -> None:
    scene = Scene()
    scene.add("fail", rpc="*", caller="container", function="work*", object="jobs")
    fitting: dict[str, Any] = {"task_id": "ta-1", "function": lambda: "worker", "objects": lambda: ["jobs"]}
    assert scene.hit("QueuePut", **fitting)
    for other in ({"task_id": ""}, {"function": lambda: "tick"}, {"objects": lambda: ["other", "qu-1"]}):
        assert not scene.hit("QueuePut", **fitting | other)
    scene.add("stall", rpc="*", caller="client")
    assert scene.hit("QueuePut") == ["stall"]


def test_what_is_costly_to_know_is_only_asked_when_it_matters() -> None:
    def unasked() -> Any:
        raise AssertionError("asked")

    scene = Scene()
    scene.add("fail", rpc="QueuePut")
    assert scene.hit("QueuePut", function=unasked, objects=unasked, load=unasked)


def test_after_count_and_seconds_bound_a_fault() -> None:
    scene = Scene()
    scene.add("fail", rpc="QueuePut", after=2, count=2)
    assert scene.hits("QueuePut", 6) == [False, False, True, True, False, False]
    scene.add("fail", rpc="DictGet", seconds=10)
    scene.now = 9.9
    assert scene.hit("DictGet")
    scene.now = 10.0
    assert not scene.hit("DictGet")
    assert [fault.state for fault in scene.faults.known()] == ["spent", "expired"]


def test_requests_of_each_name_are_counted_apart() -> None:
    scene = Scene()
    scene.add("fail", rpc="Queue*", after=1)
    assert [bool(scene.hit(name)) for name in ("QueuePut", "QueueGet", "QueueGet", "QueuePut")] == [
        *(False, False, True, True)
    ]


def test_the_same_seed_repeats_the_same_luck_whatever_comes_in_between() -> None:
    alone, mixed, other = Scene(7), Scene(7), Scene(8)
    for scene in (alone, mixed, other):
        scene.add("fail", rpc="*", probability=0.5)
    expected = alone.hits("QueuePut", 64)
    seen = []
    for _ in range(64):
        mixed.hits("DictGet", 3)
        seen += mixed.hits("QueuePut", 1)
    assert seen == expected
    assert other.hits("QueuePut", 64) != expected
    assert 20 < sum(expected) < 44


def test_two_faults_have_luck_of_their_own() -> None:
    scene = Scene()
    scene.add("latency", rpc="A", delay=1, probability=0.5)
    scene.add("latency", rpc="A", delay=2, probability=0.5)
    delays = [tuple(strike.delay for strike in scene.faults.strikes(Visit("A"))) for _ in range(64)]
    assert set(delays) == {(), (1.0,), (2.0,), (1.0, 2.0)}


def test_luck_does_not_depend_on_the_version_of_python() -> None:
    scene = Scene(42)
    scene.add("fail", rpc="A", probability=0.5)
    assert scene.hits("A", 12) == LUCK_OF_42


LUCK_OF_42 = [False, False, False, True, False, False, False, True, False, False, False, True]


def test_jitter_stays_within_its_bounds_and_delays_are_never_negative() -> None:
    scene = Scene()
    scene.add("latency", delay=0.1, jitter=0.3)
    delays = [scene.faults.strikes(Visit("A"))[0].delay for _ in range(200)]
    assert min(delays) == 0.0 and 0.3 < max(delays) <= 0.4 and len(set(delays)) > 100


def test_latencies_add_up_but_a_request_ends_in_one_way_only() -> None:
    scene = Scene()
    scene.add("latency", delay=0.1)
    first = scene.add("fail", rpc="A", count=1)
    second = scene.add("stall", rpc="A")
    scene.add("latency", delay=0.2)
    assert scene.hit("A") == ["latency", "fail", "latency"]
    assert scene.hit("A") == ["latency", "stall", "latency"]
    struck = {fault.fault_id: fault.struck for fault in scene.faults.known()}
    assert (struck[first], struck[second]) == (1, 1)


def test_a_quota_strikes_only_while_it_is_exhausted() -> None:
    scene = Scene()
    scene.add("quota-inputs", limit=3, object="work")
    for waiting, refused in ((0, False), (2, False), (3, True), (9, True)):
        assert bool(scene.hit("FunctionMap", objects=lambda: ["work"], load=lambda n=waiting: n)) is refused
    assert scene.faults.known()[0].spec.status == "RESOURCE_EXHAUSTED"


def test_what_cannot_be_repeated_is_not_executed_twice() -> None:
    scene = Scene()
    scene.add("twice", rpc="*")
    assert scene.hit("AppGetLogs", repeatable=False) == [] and scene.hit("QueuePut") == ["twice"]


def test_clearing_ends_faults_and_lets_go_what_they_stall() -> None:
    scene = Scene()
    one, two = scene.add("stall", rpc="A"), scene.add("stall", rpc="B", count=1)
    scene.hit("B")
    assert scene.faults.clear(one).ended.is_set() and not scene.hit("A")
    assert not scene.faults.known()[1].ended.is_set()
    assert scene.faults.clear_all() == [] and scene.faults.known()[1].ended.is_set()
    assert [fault.state for fault in scene.faults.known()] == ["cleared", "spent"]
    assert two == "f2"
    with pytest.raises(FaultRefused, match="no fault 'f9'"):
        scene.faults.clear("f9")


def test_everything_is_written_down() -> None:
    scene = Scene()
    fault = scene.add("late", rpc="A", delay=0.5, count=2)
    scene.hit("A", task_id="ta-1")
    scene.hit("A")
    scene.add("fail", rpc="B")
    scene.faults.clear_all()
    assert scene.journal == [
        {
            "event": "set",
            "id": fault,
            "spec": {"fault": "late", "effect": "late", "rpc": "A", "delay": 0.5, "count": 2},
        },
        {"event": "strike", "id": "f1", "effect": "late", "rpc": "A", "caller": "ta-1", "number": 0,
         "delay": 0.5},
        {"event": "strike", "id": "f1", "effect": "late", "rpc": "A", "caller": "client", "number": 1,
         "delay": 0.5},
        {"event": "set", "id": "f2", "spec": {"fault": "fail", "effect": "fail", "rpc": "B"}},
        {"event": "cleared", "id": "f2"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "fault: '' is none of fail,"),
        ({"fault": "fial", "rpc": "A"}, "none of fail, stall"),
        ({"fault": "fail"}, "needs the name of an RPC"),
        ({"fault": "fail", "rpc": "A", "probabilty": 1}, "probabilty: no such setting"),
        ({"fault": "fail", "rpc": "A", "probability": 0}, "probability"),
        ({"fault": "fail", "rpc": "A", "probability": "often"}, "not of type float"),
        ({"fault": "fail", "rpc": "A", "count": True}, "not of type int"),
        ({"fault": "fail", "rpc": "A", "count": 0}, "count"),
        ({"fault": "fail", "rpc": "A", "status": "OK"}, "no gRPC status"),
        ({"fault": "fail", "rpc": "A", "status": "BROKEN"}, "no gRPC status"),
        ({"fault": "fail", "rpc": "A", "caller": "me"}, "caller"),
        ({"fault": "fail", "rpc": "A", "seconds": 0}, "seconds"),
        ({"fault": "fail", "rpc": "A", "after": -1}, "never negative"),
        ({"fault": "late", "rpc": "A"}, "delay: late needs seconds"),
        ({"fault": "latency"}, "delay: latency needs seconds"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_with_a_sentence(settings: Any, said: str) -> None:
    with pytest.raises(FaultRefused, match=said):
        FaultSpec.of(settings)


def test_every_kind_survives_being_written_down() -> None:
    for kind in KINDS:
        spec = FaultSpec.of({"fault": kind, "rpc": "A", "delay": 1, "seconds": 2.5, "after": 3})
        assert FaultSpec.of(spec.to_json()) == spec

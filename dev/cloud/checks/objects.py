"""Dict and Queue: what is atomic, what is ordered, what is too much, and how long it takes."""

from __future__ import annotations

import queue
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cloud.findings import Check, Seen, assumption, judge
from cloud.session import Session

ROUND_TRIP_SECONDS = 0.5
QUEUE_LIMIT = 5_000
ITEM_LIMIT = 2**20


CHECKS: list[Check] = []


@assumption(
    CHECKS,
    "round trip",
    f"A Dict or Queue operation takes less than {1000 * ROUND_TRIP_SECONDS:.0f} ms from here.",
    cares="airflow_provider_modal.executors",
    quiet=True,
)
def _round_trip(session: Session) -> Seen:
    def median(action: Any) -> float:
        seconds = []
        for _ in range(15):
            began = time.monotonic()
            action()
            seconds.append(time.monotonic() - began)
        return statistics.median(seconds)

    get = median(lambda: session.notes.get("round trip"))
    put = median(lambda: session.notes.put("round trip", 1))
    length = median(lambda: session.queue.len())
    return judge(
        max(get, put, length) < ROUND_TRIP_SECONDS,
        f"Medians of 15: Dict get {1000 * get:.1f} ms, put {1000 * put:.1f} ms, Queue len "
        f"{1000 * length:.1f} ms.",
        "Each claim, event and result takes several of these.",
        get=get,
        put=put,
        queue_len=length,
    )


@assumption(
    CHECKS,
    "Dict put if absent",
    "put(skip_if_exists=True) is atomic: one writer is told that it was first.",
    cares="airflow_provider_modal.worker.claim, wakeup",
)
def _put_if_absent(session: Session) -> Seen:
    keys = [session.unique("absent") for _ in range(20)]

    def here(value: str) -> list[str]:
        return [key for key in keys if session.notes.put(key, value, skip_if_exists=True)]

    with ThreadPoolExecutor(6) as threads:
        calls = [session.function("put_if_absent").spawn(keys, f"container {n}") for n in range(2)]
        won = [key for keys in threads.map(here, [f"thread {n}" for n in range(6)]) for key in keys]
        won += [key for call in calls for key in call.get(timeout=60)]
    return judge(
        sorted(won) == sorted(keys),
        f"8 writers, 20 keys: {len(won)} puts said that the key was absent, for {len(set(won))} keys.",
        "Two deliveries of an input can both have the claim; Airflow's compare-and-set decides alone.",
    )


@assumption(
    CHECKS, "Dict pop", "pop() is atomic: one reader gets the value.", cares="airflow_provider_modal.wakeup"
)
def _pop(session: Session) -> Seen:
    keys = [session.unique("pop") for _ in range(20)]
    session.notes.update(dict.fromkeys(keys, 1))

    def take(_: int) -> int:
        taken = 0
        for key in keys:
            try:
                session.notes.pop(key)
                taken += 1
            except KeyError:
                pass  # another thread was faster
        return taken

    with ThreadPoolExecutor(6) as threads:
        taken = sum(threads.map(take, range(6)))
    return judge(
        taken == len(keys),
        f"6 threads, 20 keys: {taken} pops found one.",
        "A wish for a scheduler run can be taken twice (harmless) or lost.",
    )


@assumption(
    CHECKS,
    "Queue order",
    "Items of a partition come in order, partitions are apart.",
    cares="airflow_provider_modal.executors",
)
def _order(session: Session) -> Seen:
    one, other = session.unique("one"), session.unique("other")
    for start in range(0, 100, 10):
        session.queue.put_many(list(range(start, start + 10)), partition=one)
    session.queue.put("x", partition=other)
    got = session.queue.get_many(100, partition=one)
    return judge(
        got == list(range(100)) and session.queue.len(partition=other) == 1,
        f"100 items in 10 puts came {'in order' if got == list(range(100)) else 'out of order'}, another "
        "partition's "
        "item stayed there.",
        "Harmless: events are hints, and their order is not relied on.",
    )


@assumption(
    CHECKS,
    "Queue waits",
    "A waiting get() returns within a second of the put.",
    cares="airflow_provider_modal.executors",
)
def _long_poll(session: Session) -> Seen:
    partition = session.unique("poll")
    function = session.function("put_later")
    function.remote(session.unique("warm"), 0.0)
    call = function.spawn(partition, 2.0)
    session.queue.get(timeout=30, partition=partition)
    got = time.time()
    seconds = max(0.0, got - call.get(timeout=30))
    return judge(
        seconds < 1.0,
        f"A waiting get() returned {seconds:.3f} s after the put had returned (clock difference included).",
        "The end of a task is noticed that much later.",
    )


@assumption(
    CHECKS,
    "Queue full",
    f"A partition holds {QUEUE_LIMIT:,} items; then put(block=False) raises queue.Full.",
    cares="airflow_provider_modal.worker.report",
)
def _full(session: Session) -> Seen:
    partition = session.unique("full")
    session.queue.put_many(["x"] * QUEUE_LIMIT, partition=partition)
    began = time.monotonic()
    try:
        session.queue.put("one more", block=False, partition=partition)
        what = "was taken"
    except queue.Full:
        what = "raised queue.Full"
    except Exception as error:
        what = f"raised {type(error).__name__}: {error}"
    return judge(
        what == "raised queue.Full",
        f"Item {QUEUE_LIMIT + 1:,} of a partition {what[:120]} after {time.monotonic() - began:.1f} s.",
        "A full queue has to be recognised in another way, or holds more.",
    )


@assumption(
    CHECKS,
    "Queue item size",
    "An item of more than 1 MiB is refused.",
    cares="airflow_provider_modal.worker.report",
)
def _large_item(session: Session) -> Seen:
    try:
        session.queue.put("x" * (ITEM_LIMIT + 1024), partition=session.unique("large"))
        what = "was taken"
    except Exception as error:
        what = f"raised {type(error).__name__}: {error}"
    return judge(
        what.startswith("raised"),
        f"An item of more than 1 MiB {what[:160]}.",
        "Harmless: events are small.",
    )

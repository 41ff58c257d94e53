"""What becomes of a call: cancelled, timed out, crashed, waiting, over."""

from __future__ import annotations

import itertools
import time
from typing import Any

import modal

from cloud.figures import ATTEMPTS, LIMIT_SECONDS, PERIOD_SECONDS
from cloud.findings import Check, Seen, assumption, judge, unchecked
from cloud.session import Session

CRASH_SECONDS = 100.0
JITTER_SECONDS = 5.0


CHECKS: list[Check] = []


def _raised(call: Any, timeout: float) -> BaseException | None:
    try:
        call.get(timeout=timeout)
    except Exception as error:
        return error
    return None


def _named(error: BaseException | None) -> str:
    if error is None:
        return "no exception"
    text = str(error).strip().splitlines()
    return f"{type(error).__module__}.{type(error).__name__}({text[0][:140] if text else ''!r})"


def _cancelled(error: BaseException | None) -> bool:
    return isinstance(error, (modal.exception.RemoteError, modal.exception.InputCancellation))


def _cancelled_call(session: Session, *, terminate: bool) -> tuple[BaseException | None, float, str]:
    key = session.unique("cancel")
    call = session.function("sleeper").spawn(key, 60.0)
    session.wait_for(lambda: session.notes.get(key) == "running", 40)
    began = time.monotonic()
    call.cancel(terminate_containers=terminate)
    error = _raised(call, 45)
    seconds = time.monotonic() - began
    session.wait_for(lambda: session.notes.get(key) != "running", 0 if terminate else 5)
    return error, seconds, str(session.notes.get(key))


def _attempts(session: Session, function: str, *arguments: str, until: int) -> list[tuple[float, str]]:
    key = session.unique("attempts")
    call = session.function(function).spawn(key, *arguments)
    session.wait_for(lambda: len(session.notes.get(key, [])) >= until, CRASH_SECONDS, every=0.5)
    attempts: list[tuple[float, str]] = session.notes.get(key, [])
    if len(attempts) < until:
        call.cancel(terminate_containers=True)
    return attempts


def _crash(session: Session, how: str) -> Seen:
    attempts = _attempts(session, "crash", how, until=ATTEMPTS)
    pauses = [round(after[0] - before[0], 1) for before, after in itertools.pairwise(attempts)]
    containers = len({task for _, task in attempts})
    return judge(
        len(attempts) == ATTEMPTS,
        f"The input started {len(attempts)} times within {CRASH_SECONDS:.0f} s, in {containers} "
        "containers, after "
        f"pauses of {pauses} s.",
        "An input is given up after a few crashes: the executor hears of a failure instead of a new start.",
        pauses=pauses,
    )


@assumption(
    CHECKS,
    "cancel",
    "get() of a cancelled call raises RemoteError or InputCancellation; user code gets InputCancellation.",
    cares="airflow_provider_modal.executors.gateway",
    seconds=120,
)
def _cancel(session: Session) -> Seen:
    error, seconds, inside = _cancelled_call(session, terminate=False)
    return judge(
        _cancelled(error) and inside.startswith("InputCancellation"),
        f"get() raised {_named(error)} after {seconds:.1f} s; user code got {inside}.",
        "A revoked task may be taken for one that failed, or isn't stopped.",
        seconds=seconds,
    )


@assumption(
    CHECKS,
    "cancel, terminating",
    "With terminate_containers=True the same at the caller; the container is killed.",
    cares="airflow_provider_modal.executors.gateway",
    seconds=120,
)
def _cancel_terminating(session: Session) -> Seen:
    error, seconds, inside = _cancelled_call(session, terminate=True)
    return judge(
        _cancelled(error),
        f"get() raised {_named(error)} after {seconds:.1f} s; user code noted {inside!r} last.",
        "A revoked task may be taken for one that failed.",
        seconds=seconds,
    )


@assumption(
    CHECKS,
    "time limit",
    "At its limit an input is cancelled or signalled, and killed within 45 s; get() raises "
    "FunctionTimeoutError.",
    cares="airflow_provider_modal.worker.limits",
    seconds=120,
)
def _time_limit(session: Session) -> Seen:
    key = session.unique("endless")
    call = session.function("endless").spawn(key)
    error = _raised(call, 60)
    last: dict[str, Any] = {}

    def still() -> bool:
        nonlocal last
        before, last = last, session.notes.get(key) or {}
        return before == last

    session.wait_for(still, 50, every=3.0)
    events = ", ".join(f"{what} at {at} s" for what, at in last.get("events", [])) or "nothing"
    alive = last.get("alive", 0.0)
    return judge(
        isinstance(error, modal.exception.FunctionTimeoutError) and alive < LIMIT_SECONDS + 45,
        f"With a limit of {LIMIT_SECONDS} s user code got {events}, and was last alive at {alive} s; get() "
        "raised "
        f"{_named(error)}.",
        "What ends a task at Modal's limit is another signal or later; the worker's own limit comes first.",
        **last,
    )


@assumption(
    CHECKS,
    "crash: exit",
    f"An input whose container exits starts again, and again ({ATTEMPTS} starts looked for).",
    cares="airflow_provider_modal.worker.claim",
    seconds=120,
)
def _crash_exit(session: Session) -> Seen:
    return _crash(session, "exit")


@assumption(
    CHECKS,
    "crash: SIGKILL",
    f"An input whose container is killed starts again, and again ({ATTEMPTS} starts looked for).",
    cares="airflow_provider_modal.worker.claim",
    seconds=120,
)
def _crash_kill(session: Session) -> Seen:
    return _crash(session, "SIGKILL")


@assumption(
    CHECKS,
    "out of memory",
    "A container that exceeds memory=(_, limit) is killed, its input starts again in another.",
    cares="airflow_provider_modal.worker.memory",
    seconds=120,
)
def _out_of_memory(session: Session) -> Seen:
    attempts = _attempts(session, "hog", until=2)
    return judge(
        len(attempts) == 2 and attempts[0][1] != attempts[1][1],
        f"768 MiB in a container of 256: {len(attempts)} starts"
        + (", the second in another container." if len(attempts) == 2 else "; nothing ended the first."),
        "A task that takes too much memory isn't ended, or not started again: what the claim says of it "
        "differs.",
    )


@assumption(
    CHECKS,
    "max_containers=1",
    "Concurrent calls run one after the other.",
    cares="airflow_provider_modal.wakeup",
    seconds=120,
)
def _one_container(session: Session) -> Seen:
    lone = session.function("lone")
    calls = [lone.spawn() for _ in range(8)]
    ran = sorted((call.get(timeout=60) for call in calls), key=lambda each: float(each[1]))
    overlaps = sum(after[1] < before[2] for before, after in itertools.pairwise(ran))
    return judge(
        overlaps == 0,
        f"8 calls at once ran in {len({each[0] for each in ran})} container(s), {overlaps} overlapped.",
        "Two scheduler runs can work at the same time; the lock in the database decides alone.",
    )


@assumption(
    CHECKS,
    "single use",
    "single_use_containers=True gives each call a container.",
    cares="airflow_provider_modal.app",
    seconds=120,
)
def _single_use(session: Session) -> Seen:
    function = session.function("single_use")
    tasks = {function.remote()[1] for _ in range(3)}
    return judge(
        len(tasks) == 3,
        f"3 calls ran in {len(tasks)} containers.",
        "A container with single_use_containers takes another input: what it left behind is found.",
    )


@assumption(
    CHECKS,
    "result by id",
    "The result of a call can be read again, by its id, after its end.",
    cares="airflow_provider_modal.executors.questions",
)
def _result_again(session: Session) -> Seen:
    call = session.function("stamp").spawn()
    first = call.get(timeout=60)
    later = modal.FunctionCall.from_id(call.object_id)
    again = [later.get(timeout=10), later.get(timeout=0)]
    return judge(
        again == [first, first],
        "FunctionCall.from_id(...).get() of a call that is over gives the same result again.",
        "A scheduler that comes later can't learn how its predecessor's calls ended.",
    )


@assumption(
    CHECKS,
    "result not there yet",
    "get(timeout=0) raises the built-in TimeoutError while a call runs.",
    cares="airflow_provider_modal.executors.gateway",
)
def _not_yet(session: Session) -> Seen:
    call = session.function("sleeper").spawn(session.unique("poll"), 30.0)
    error = _raised(call, 0)
    call.cancel(terminate_containers=True)
    return judge(
        type(error) is TimeoutError,
        f"get(timeout=0) of a call that still runs raised {_named(error)}.",
        "Asking whether a call is over looks like a failure of the call.",
    )


@assumption(
    CHECKS,
    "error of user code",
    "An exception of user code is raised at the caller with its type and text.",
    cares="airflow_provider_modal.control.client",
)
def _user_error(session: Session) -> Seen:
    error = _raised(session.function("fail").spawn("no such thing"), 60)
    return judge(
        isinstance(error, LookupError) and "no such thing" in str(error),
        f"get() raised {_named(error)}.",
        "The reason of a failure has to be read from another exception.",
    )


@assumption(
    CHECKS,
    "schedule",
    f"Period(seconds={PERIOD_SECONDS}) fires with a jitter of at most {JITTER_SECONDS:.0f} s.",
    cares="airflow_provider_modal.app",
)
def _schedule(session: Session) -> Seen:
    def fired() -> list[float]:
        return [float(at) for at in session.queue.iterate(partition="scheduled", item_poll_timeout=0)]

    session.wait_for(lambda: session.queue.len(partition="scheduled") >= 5, 40, every=0.5)
    times = fired()
    pauses = [round(after - before, 1) for before, after in itertools.pairwise(times)]
    if not pauses:
        return judge(False, "It didn't fire within 40 s.", "Nothing wakes an idle environment.")
    off = max(abs(pause - PERIOD_SECONDS) for pause in pauses)
    return judge(
        off <= JITTER_SECONDS,
        f"First {times[0] - session.deployed_at:.1f} s after the deployment, then after {pauses} s.",
        "The schedule is late by more than the interval: what nobody announced waits longer.",
        pauses=pauses,
    )


@assumption(
    CHECKS,
    "result retention",
    "Results can be read for 7 days.",
    cares="airflow_provider_modal.executors.questions",
)
def _retention(session: Session) -> Seen:
    return unchecked("Results are kept for 7 days, too long to wait for.")

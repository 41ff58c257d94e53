"""What does the local Modal server cost? One run, on a server of its own, through the stock SDK."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import importlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import modal
import psutil

from bench import local_modal_volumes
from bench.figures import Figure, seconds, table, times
from local_modal.testing import LocalModal, wait_until

COLD = "cold spawn -> user code"
CALLS, LONG_CALLS = 10_000, 100_000
BATCH = 1_000


class Bench:
    """The deployed app and the objects that are measured."""

    def __init__(self, server: LocalModal) -> None:
        self.server = server
        self.dict = modal.Dict.from_name("bench", create_if_missing=True)
        self.queue = modal.Queue.from_name("bench", create_if_missing=True)

    def function(self, name: str) -> modal.Function:
        """A deployed function, looked up."""
        function = modal.Function.from_name("bench", name)
        function.hydrate()
        return function

    def memory(self) -> float:
        """MiB of the server process."""
        return float(psutil.Process(self.server.pid).memory_info().rss) / 2**20


Measurement = Callable[[Bench], Iterator[Figure]]


def cold(bench: Bench) -> Iterator[Figure]:
    """From spawn() to the first line of user code in a new container; all share the machine's clock."""
    for name, label, count, reference in (
        ("cold", COLD, 12, "305 (p95 319)"),
        ("cold_with_volume", "the same, with a volume", 6, "335"),
    ):
        function = bench.function(name)
        function.remote()
        yield Figure(label, [_start(function) for _ in range(count)], "ms", reference)


def cold_plain(bench: Bench) -> Iterator[Figure]:
    """The same on a server without a zygote; in a process of its own, as the SDK keeps its first client."""
    command = [sys.executable, "-m", "bench.local_modal", "--json", "--only", "cold", "--serve=--no-zygote"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
    output = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True).stdout
    yield Figure("the same, without a zygote", json.loads(output)[COLD]["values"], "ms", "305 (p95 319)")


def warm(bench: Bench) -> Iterator[Figure]:
    """The same in a container that waits for it."""
    function = bench.function("warm")
    function.remote()
    yield Figure("warm spawn -> user code", [_start(function) for _ in range(100)], "ms", "2.5 (p95 3.4)")
    yield times("spawn() itself, warm", lambda: function.spawn(), 100, "1.5")
    function.remote()
    yield times("spawn() and get(), warm", lambda: function.spawn().get(), 100, "4.6")


def _start(function: modal.Function) -> float:
    began = time.time()
    return 1000 * (function.remote() - began)


def many_calls(bench: Bench) -> Iterator[Figure]:
    """How many calls a second one client can make, and how long it takes until they are done."""
    nothing = bench.function("nothing")
    nothing.remote()
    calls: list[Any] = []
    took = seconds(lambda: calls.extend(nothing.spawn(x) for x in range(500)))
    yield Figure("sequential spawn()", [500 / took], "/s", "705")
    calls[-1].get()

    async def gather() -> None:
        calls.append(await asyncio.gather(*(nothing.spawn.aio(x) for x in range(BATCH))))

    took = seconds(lambda: asyncio.run(gather()))
    yield Figure("gather of 1,000 spawn.aio()", [BATCH / took], "/s", "1,406")
    spawned = calls[-1]
    for call in spawned:
        call.get()

    async def ask() -> None:
        await asyncio.gather(*(call.get.aio(timeout=0) for call in spawned))

    done = spawned[-1]
    yield times("get(timeout=0) of a call that is over", lambda: done.get(timeout=0), 100, "1.75")
    yield times("get(timeout=0) of 1,000 by gather", lambda: asyncio.run(ask()), 1, "1.06", unit="s")

    with contextlib.suppress(AttributeError):  # the one experimental name here
        spawn_map = nothing.experimental_spawn_map
        took = seconds(lambda: calls.append(spawn_map(range(BATCH))))
        yield Figure("experimental_spawn_map of 1,000", [BATCH / took], "/s", "2,079")
        calls[-1].get(index=BATCH - 1)
    spread = bench.function("spread")
    list(spread.map(range(64)))
    yield times(
        "map of 1,000, end to end, 8 containers", lambda: list(spread.map(range(BATCH))), 3, "3.4", unit="s"
    )


def cancels(bench: Bench) -> Iterator[Figure]:
    """From cancel() until get() raises."""
    sleeper = bench.function("sleeper")
    for terminate, label, count, reference in (
        (False, "cancel() -> get() raises", 10, "10"),
        (True, "the same, terminate_containers=True", 5, "5"),
    ):
        taken = []
        for number in range(count):
            key = f"{label}-{number}"
            call = sleeper.spawn(key)
            wait_until(functools.partial(bench.dict.contains, key), 30, "the call runs")
            # An input that has just started may not hear of its cancellation the first time.
            time.sleep(0.2)
            began = time.perf_counter()
            call.cancel(terminate_containers=terminate)
            try:
                call.get()
            except (modal.exception.RemoteError, modal.exception.InputCancellation):
                taken.append(1000 * (time.perf_counter() - began))
        yield Figure(label, taken, "ms", reference)


def objects(bench: Bench) -> Iterator[Figure]:
    """Dict and Queue."""
    entries: dict[Any, Any] = {f"key-{number}": {"number": number} for number in range(BATCH)}
    bench.dict.clear()
    yield times("Dict.update() of 1,000", lambda: bench.dict.update(entries), 5, "15")
    yield times("Dict.items() of 1,000", lambda: list(bench.dict.items()), 5, "218 to 269")
    yield times("Dict put", lambda: bench.dict.put("one", 1), 200, "1.3")
    yield times("Dict get", lambda: bench.dict.get("one"), 200, "1.2")
    items = list(entries.values())
    puts, gets = [], []
    for _ in range(5):
        puts.append(1000 * seconds(lambda: bench.queue.put_many(items)))
        gets.append(1000 * seconds(lambda: bench.queue.get_many(BATCH)))
    yield Figure("Queue.put_many() of 1,000", puts, "ms", "80")
    yield Figure("Queue.get_many() of 1,000", gets, "ms", "9")


def deployments(bench: Bench) -> Iterator[Figure]:
    """An app of 15 functions, deployed again and again."""
    app = importlib.import_module("bench.app").fifteen
    app.deploy()
    yield times("deploy() of 15 functions", app.deploy, 5, "120 (RPCs only)")


def web(bench: Bench) -> Iterator[Figure]:
    """A request to an endpoint without a container, and to one with."""
    url = bench.function("web").get_web_url()
    assert url is not None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask() -> None:
        with opener.open(url, timeout=60) as answer:
            answer.read()

    taken = []
    for _ in range(3):
        wait_until(lambda: not bench.server.tasks("web"), 30, "no container waits for requests")
        taken.append(1000 * seconds(ask))
    yield Figure("web request, cold", taken, "ms", "420")
    yield times("web request, warm", ask, 100, "15")


def imports(bench: Bench) -> Iterator[Figure]:
    """What a container without a zygote pays first."""
    python = os.environ.get("LOCAL_MODAL_PYTHON", sys.executable)
    command = [python, "-c", "import modal._container_entrypoint"]
    subprocess.run(command, check=True)
    yield times(
        "import modal._container_entrypoint", lambda: subprocess.run(command, check=True), 5, "270 to 360"
    )


MEASUREMENTS: Sequence[Measurement] = (
    imports,
    cold,
    cold_plain,
    warm,
    many_calls,
    cancels,
    objects,
    deployments,
    web,
)


def memory(bench: Bench, calls: int) -> Iterator[Figure]:
    """The server's memory while calls come and go: it may not grow with their number."""
    nothing = bench.function("nothing")
    yield Figure("server memory before them", [bench.memory()], "MiB", "64")
    for part in range(4):
        for _ in range(calls // 4 // BATCH):
            for _ in nothing.map(range(BATCH)):
                pass
        yield Figure(f"after {(part + 1) * (calls // 4):,} calls", [bench.memory()], "MiB")


def main() -> int:
    """Measure, print a table as figures come, and the whole at the end."""
    parser = argparse.ArgumentParser("dev/bench/run", description=__doc__)
    parser.add_argument("--long", action="store_true", help=f"{LONG_CALLS:,} calls instead of {CALLS:,}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="a group; there are "
        + ", ".join([each.__name__ for each in MEASUREMENTS] + ["memory", "volumes"]),
    )  # fmt: skip
    parser.add_argument(
        "--serve", action="append", default=[], metavar="ARGUMENT", help="an argument of `serve`, repeatable"
    )
    options = parser.parse_args()
    figures: list[Figure] = []
    with LocalModal(arguments=["--max-containers", "16", *options.serve]) as server:
        os.environ.update(server.env)
        importlib.import_module("bench.app").app.deploy()
        bench = Bench(server)
        for measure in MEASUREMENTS:
            if not options.only or measure.__name__ in options.only:
                figures += _told(measure(bench))
        if not options.only or "memory" in options.only:
            figures += _told(memory(bench, LONG_CALLS if options.long else CALLS))
        mode = server.mode
    if options.json:
        print(json.dumps({each.name: {"unit": each.unit, "values": list(each.values)} for each in figures}))
    else:
        print(f"\nmodal {modal.__version__}, {os.cpu_count()} cores, containers {mode}\n\n{table(figures)}")
        if not options.only or "volumes" in options.only:
            print("\nViews of volumes, in ms (python -m bench.local_modal_volumes --help):\n", flush=True)
            return local_modal_volumes.main([])
    return 0


def _told(figures: Iterator[Figure]) -> Iterator[Figure]:
    for figure in figures:
        print(f"  {figure.name}: {figure.median:.1f} {figure.unit}", file=sys.stderr, flush=True)
        yield figure


if __name__ == "__main__":
    sys.exit(main())

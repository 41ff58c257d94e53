"""How long a container waits for its volumes in local_modal: copies beside overlays, in one run.

    PYTHONPATH=dev python -m bench.local_modal_volumes [FILES ...]

Prints milliseconds, each the median of some tries, for volumes of so many files of 4 KiB (100, 1,000 and
10,000 unless given):

first      the first view of a volume since the server's start
again      a view when another container of the same version is there already
changed    a view after another container has committed one file
commit     the commit of one changed file
reload 0   a reload when nothing has changed
reload 1   a reload when one file has
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from local_modal.idle_container import IdleContainer
from local_modal.volumes.copies import CopyView
from local_modal.volumes.manifest import Changes, Entry, file
from local_modal.volumes.overlays import Kind, OverlayView, detect
from local_modal.volumes.store import VolumeStore
from local_modal.volumes.trees import Trees
from local_modal.volumes.views import SERVICE_MOUNTS, BoundView, View

VOLUME = "vo-bench"
TRIES = 5
FILE_BYTES = 4096
FILES_PER_DIRECTORY = 100
COLUMNS = ("first", "again", "changed", "commit", "reload 0", "reload 1")


def main(arguments: list[str]) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=int, nargs="*", default=[100, 1_000, 10_000], metavar="FILES")
    sizes: list[int] = parser.parse_args(arguments).files
    print(f"{'files':>7} {'view':8}" + "".join(f"{column:>10}" for column in COLUMNS))
    with tempfile.TemporaryDirectory() as directory:
        kind = asyncio.run(detect(sys.executable, Path(directory)))
        for size in sizes:
            for name, chosen in (("copy", None), ("overlay", kind)):
                if isinstance(chosen, str):
                    print(f"{size:7} {name:8} {chosen}")
                    continue
                figures = measure(Path(directory, f"{size}-{name}"), size, chosen)
                print(f"{size:7} {name:8}" + "".join(f"{figures[column]:10.1f}" for column in COLUMNS))
    return 0


def measure(directory: Path, files: int, kind: Kind | None) -> dict[str, float]:
    """Milliseconds per column, for one size of volume and one kind of view."""
    store = VolumeStore(directory / "store")
    store.create(VOLUME)
    store.commit(VOLUME, Changes({_path(number): _content(store, number) for number in range(files)}))
    (directory / "views").mkdir()
    trees = Trees(store, directory / "trees")
    numbers = itertools.count()

    def new_view() -> View:
        target = directory / "views" / str(next(numbers))
        bound = BoundView("/vol", target, False, VOLUME)
        if kind is None:
            return CopyView(store, bound)
        service_path = f"{SERVICE_MOUNTS}/{VOLUME}/0"
        bound = BoundView("/vol", target, False, VOLUME, service_path=service_path)
        return OverlayView(store, trees, kind, bound, target)

    def commit_one(number: int) -> None:
        store.commit(VOLUME, Changes({_path(0): _content(store, files + number)}))

    view = new_view()
    figures = {"first": _milliseconds(view.open)}
    others = [new_view() for _ in range(TRIES)]
    figures["again"] = _median(other.open for other in others)
    changed = []
    for number in range(TRIES):
        commit_one(number)
        others.append(new_view())
        changed.append(_milliseconds(others[-1].open))
    figures["changed"] = statistics.median(changed)

    (directory / "container").mkdir()
    container = IdleContainer(view.bound, directory / "container")
    root = container.mount if kind is not None else view.bound.host_path
    pids = [container.pid]
    view.reload(pids)
    commits, idle, reloads = [], [], []
    for number in range(TRIES):
        (root / _path(1)).write_bytes(os.urandom(FILE_BYTES))
        commits.append(_milliseconds(lambda: view.commit(pids)))
        idle.append(_milliseconds(lambda: view.reload(pids)))
        commit_one(TRIES + number)
        reloads.append(_milliseconds(lambda: view.reload(pids)))
    container.close()
    for opened in (view, *others):
        opened.close()
    for column, tries in (("commit", commits), ("reload 0", idle), ("reload 1", reloads)):
        figures[column] = statistics.median(tries)
    return figures


def _path(number: int) -> str:
    return f"{number // FILES_PER_DIRECTORY}/{number}"


def _content(store: VolumeStore, number: int) -> Entry:
    data = number.to_bytes(8, "little") * (FILE_BYTES // 8)
    return file(store.blobs.put_bytes(data), len(data), 0o644, time.time_ns())


def _median(actions: Iterable[Callable[[], None]]) -> float:
    return statistics.median([_milliseconds(action) for action in actions])


def _milliseconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What does a virtualenv cost: made once, taken from the Volume by a container, and used by its next tasks?

    dev/bench/venvs [--files 2500] [--mib 100] [--json]

One package with so many files of text that is as compressible as code, about as much as numpy and pandas, is
installed from a folder and kept on the Volume of a local Modal server; ten containers, folders here,
take it from there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from airflow_provider_modal.venvs import activation, image, requirements
from bench.figures import Figure, seconds, table, times
from local_modal.testing import LocalModal

WANTED = ("bulky==1.0",)
CONTAINERS = 10
TASKS = 100


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=2500, help="of the package")
    parser.add_argument("--mib", type=float, default=100, help="that they have together")
    parser.add_argument("--json", action="store_true", help="for scripts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modalflow-bench-") as folder, LocalModal() as server:
        os.environ.update({name: value for name, value in server.env.items() if name.startswith("MODAL_")})
        figures = list(_measured(Path(folder), options.files, int(options.mib * 2**20)))
    if options.json:
        print(json.dumps([{"name": f.name, "unit": f.unit, "values": list(f.values)} for f in figures]))
    else:
        print(f"\n{os.cpu_count()} cores\n\n{table(figures)}")
    return 0


def _measured(root: Path, files: int, size: int) -> Iterator[Figure]:
    import modal

    from airflow_provider_modal.venvs.provision import Limits, Venvs
    from airflow_provider_modal.volume.files import VolumeFiles

    environ = _index(root / "links", files, size)
    volume = VolumeFiles(modal.Volume.from_name("bench-venvs", version=2, create_if_missing=True).hydrate())
    state = modal.Dict.from_name("bench-venvs", create_if_missing=True).hydrate()

    def container(name: str) -> Venvs:
        return Venvs(volume, state, holder=name, note=lambda *_: None, root=root / name)

    def ready(name: str) -> Path:
        return container(name).ready(WANTED, environ, Limits(time.monotonic() + 600))

    yield Figure("made and stored", [seconds(lambda: ready("maker"))], "s")
    stored = sum(entry.size for entry in volume.list("venvs"))
    yield Figure(f"archive of {files} files, {size / 2**20:g} MiB", [stored / 2**20], "MiB")
    image.installed.cache_clear()
    taken = [seconds(lambda name=f"c{n}": ready(name)) for n in range(CONTAINERS)]  # type: ignore[misc]
    yield Figure("taken from the Volume by a container", taken, "s", "under 1 s")

    tree = root / "tree"
    tree.mkdir()
    (tree / requirements.FILE_NAME).write_text("\n".join(WANTED))
    found = ready("c0")

    def task() -> None:
        wanted = requirements.of_dag_file(tree, "dag.py")
        container("c0").ready(wanted, environ, Limits(time.monotonic() + 600))
        activation.environment(found, os.environ)

    yield times("per task in a container that has it, worker", task, TASKS, "under 50 ms")

    def child() -> None:
        before = list(sys.path)
        activation.check(found)
        activation.activate(found)
        sys.path[:] = before

    yield times("the same, the task's own processes", child, TASKS)


def _index(folder: Path, files: int, size: int) -> Mapping[str, str]:
    """Write the package into a folder, and return the variables that have it installed from there."""
    folder.mkdir()
    words = [bytes(random.Random(seed).choices(b"abcdefghijklmnop _", k=7)) for seed in range(5000)]
    choice = random.Random(0)
    info = "bulky-1.0.dist-info"
    with zipfile.ZipFile(folder / "bulky-1.0-py3-none-any.whl", "w", zipfile.ZIP_STORED) as wheel:
        names = [f"bulky/part{n % 50}/file{n}.txt" for n in range(files)]
        for name in names:
            wheel.writestr(name, b" ".join(choice.choices(words, k=size // files // 8)))
        wheel.writestr("bulky/__init__.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: bulky\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    return {**os.environ, "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(folder)}


if __name__ == "__main__":
    sys.exit(main())

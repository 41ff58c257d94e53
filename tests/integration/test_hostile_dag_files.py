"""Whatever a DAG file does: it gets an import error, the others are parsed, and nothing of it goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from local_modal.testing import wait_until
from tests.support.airflow_children import AirflowChildren
from tests.support.processes import is_running

GOOD = """
from airflow.sdk import DAG, task
with DAG("{dag_id}", schedule=None):
    @task
    def hello(): print("hello")
    hello()
"""
NOT_IN_TIME = "was not parsed within 6 s and could not be interrupted"
WAIT = "import time\nwhile True:\n    try: time.sleep(60)\n    except BaseException: pass\n"
FORK = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    note(os.getpid())\n    time.sleep(300)\n"

HOSTILE = {
    "sleeps": ("import time; time.sleep(100)", "import timeout"),
    "matches": ("import re; re.match('(a+)+$', 'a' * 40 + 'b')", "import timeout"),
    "blocks_signals": (
        "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n" + WAIT,
        NOT_IN_TIME,
    ),
    "handles_signals": (
        "import signal\nfor number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):\n"
        "    signal.signal(number, lambda *_: None)\n" + WAIT,
        NOT_IN_TIME,
    ),
    "catches_everything": (WAIT, NOT_IN_TIME),
    "exits_hard": ("import os; os._exit(3)", "exit code 3"),
    "exits_well": ("import os; os._exit(0)", "exit code 0"),
    "exits": ("import sys; sys.exit(3)", "SystemExit"),
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "is_killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    "recurses": ("def again(): again()\nagain()", "RecursionError"),
    "takes_memory": ("taken = bytearray(3 * 1024 ** 3)", "MemoryError"),
    "tells_a_lot": ("raise ValueError('x' * 50_000_000)", ""),
    "tells_much": ("raise ValueError('x' * 200_000)", "characters are left out"),
    "prints_a_lot": ("while True: print('x' * 10_000)", "import timeout"),
    "prints_no_line": ("import sys\nwhile True: sys.stdout.write('x' * 10_000)", "import timeout"),
    "reads_input": ("import sys; sys.stdin.read()", ""),
    "sends_nonsense": ("import os; os.write(0, b'\\0\\0\\0\\4nope' * 100)\n1 / 0", ""),
    "announces_gigabytes": ("import os; os.write(0, b'\\xff' * 4)\n1 / 0", ""),
    "closes_everything": ("import os; os.closerange(0, 4096)", ""),
    "has_a_thread": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(300,)).start()\n1 / 0",
        "",
    ),
    "leaves_a_daemon": (FORK + "1 / 0", "ZeroDivisionError"),
    "leaves_many": (
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0: os.setsid()\n"
        "note(os.getpid())\ntime.sleep(300)",
        "",
    ),
    "holds_the_pipes": (FORK + "os._exit(4)", "exit code 4"),
    "needs_nothing_there": ("import no_such_module_anywhere", "no_such_module_anywhere"),
}
"""By file: its code, and a part of its import error; empty where a race decides what that says."""


def _note(folder: Path) -> str:
    """Code of a function that leaves a process id in a folder."""
    return (
        "# dag airflow\n"
        f"def note(pid):\n    import pathlib\n    (pathlib.Path({str(folder)!r}) / str(pid)).touch()\n"
    )


@pytest.mark.skipif(
    "MODALFLOW_TEST_HOSTILE" not in os.environ,
    reason="ten files at a time spin and fork; set MODALFLOW_TEST_HOSTILE where nothing shares the cores",
)
def test_hostile_files_get_import_errors_and_harm_nobody(
    airflow_children: AirflowChildren, tmp_path: Path
) -> None:
    files = {f"{name}.py": _note(tmp_path) + code for name, (code, _) in HOSTILE.items()}
    good = {"a_good": GOOD.format(dag_id="a_good"), "zz_good": GOOD.format(dag_id="zz_good")}
    files |= {f"{name}.py": code for name, code in good.items()}

    done = airflow_children.parse(
        files, per_file=6.0, phase=90.0, environ={"AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "10"}
    )

    assert (done["files"], done["errors"], done["left"]) == (len(files), len(HOSTILE), 0)
    errors = dict(airflow_children.sql("SELECT filename, stacktrace FROM import_error"))
    assert sorted(errors) == sorted(f"{name}.py" for name in HOSTILE)
    unexpected = {
        name: errors[f"{name}.py"][-500:]
        for name, (_, expected) in HOSTILE.items()
        if expected not in errors[f"{name}.py"]
    }
    assert unexpected == {}
    assert all(len(text) < 100_000 for text in errors.values())
    active = airflow_children.sql("SELECT dag_id FROM dag WHERE NOT is_stale ORDER BY dag_id")
    assert active == [("a_good",), ("zz_good",)]
    strays = [int(path.name) for path in tmp_path.iterdir()]
    assert len(strays) >= 3
    wait_until(lambda: not any(map(is_running, strays)), 20, "no stray survives")
